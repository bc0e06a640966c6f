// The contract of groups.h, checked without Python: against long double and the definition, and that bad input is
// refused. Meant to run under sanitizers; that it agrees with the reference is checked from Python.
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "groups.h"

using namespace fgrpo;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Result {
    Result(std::size_t B, std::size_t S) : advantages(B), mean(S), std(S), degenerate(S) {}
    Advantages out() { return {advantages, mean, std, degenerate}; }

    std::vector<double> advantages, mean, std;
    std::vector<std::uint8_t> degenerate;
};

struct Moments {
    long double size = 0, mean = 0, std = 0;
};

template <typename Counts>
Moments moments(const std::vector<double>& rewards, const Counts& counts) {
    Moments found;
    for (std::size_t b = 0; b < rewards.size(); ++b) {
        if (!counts(b) || std::isnan(rewards[b])) continue;
        ++found.size;
        found.mean += rewards[b];
    }
    found.mean /= found.size;
    for (std::size_t b = 0; b < rewards.size(); ++b) {
        if (!counts(b) || std::isnan(rewards[b])) continue;
        found.std += (rewards[b] - found.mean) * (rewards[b] - found.mean);
    }
    found.std = std::sqrt(found.std / (found.size - 1));
    return found;
}

void check_near(double value, long double expected) {
    CHECK(std::abs(value - expected) <= 1e-12L * (1 + std::abs(expected)));
}

// Two rows or more with different rewards in every group, some without a reward.
void check_definition(std::size_t S, std::size_t length, bool by_id, const AdvantageOptions& options) {
    std::mt19937 engine(static_cast<unsigned>(S * 100 + length));
    std::normal_distribution<double> normal;
    std::vector<double> rewards(S * length);
    std::vector<std::int64_t> ids(rewards.size());
    for (std::size_t b = 0; b < rewards.size(); ++b) {
        ids[b] = static_cast<std::int64_t>(by_id ? b % S : b / length);
        rewards[b] = b / S > 2 && engine() % 4 == 0 && by_id ? kNaN : normal(engine);
    }
    Result result(rewards.size(), S);
    const std::vector<std::int64_t> given = by_id ? ids : std::vector<std::int64_t>{};
    group_advantages(rewards, {given, S}, options, result.out());
    const Moments batch = moments(rewards, [](std::size_t) { return true; });
    for (std::size_t b = 0; b < rewards.size(); ++b) {
        const auto s = static_cast<std::size_t>(ids[b]);
        const Moments group = moments(rewards, [&](std::size_t other) { return ids[other] == ids[b]; });
        check_near(result.mean[s], group.mean);
        check_near(result.std[s], group.std);
        CHECK(result.degenerate[s] == 0);
        long double expected = rewards[b] - group.mean;
        if (options.leave_one_out) expected *= group.size / (group.size - 1);
        if (options.scale == AdvantageScale::group) expected /= group.std + options.eps;
        if (options.scale == AdvantageScale::batch) expected /= batch.std + options.eps;
        if (std::isnan(rewards[b])) expected = 0;
        check_near(result.advantages[b], expected);
    }
}

void check_edges() {
    const AdvantageOptions by_group = {AdvantageScale::group, false, 1e-4};
    const AdvantageOptions by_batch = {AdvantageScale::batch, false, 1e-4};
    {  // equal rewards, one reward alone, none at all; the last group has no row
        const std::vector<double> rewards = {0.1, 0.1, 5.0, kNaN, kNaN, kNaN};
        const std::vector<std::int64_t> ids = {0, 0, 1, 1, 2, 2};
        Result result(6, 4);
        group_advantages(rewards, {ids, 4}, by_group, result.out());
        for (const double advantage : result.advantages) CHECK(advantage == 0.0);
        for (const std::uint8_t degenerate : result.degenerate) CHECK(degenerate == 1);
        for (const double std : result.std) CHECK(std == 0.0);
        CHECK(result.mean[0] == 0.1 && result.mean[1] == 5.0);
        CHECK(std::isnan(result.mean[2]) && std::isnan(result.mean[3]));
    }
    {  // groups of one row: the batch is what they are compared with
        const std::vector<double> rewards = {1.0, 3.0};
        Result result(2, 2);
        group_advantages(rewards, {{}, 2}, by_batch, result.out());
        CHECK(result.advantages[0] < 0 && result.advantages[1] == -result.advantages[0]);
        CHECK(result.degenerate[0] == 0);
    }
    {  // squares that float64 does not hold
        const std::vector<double> rewards = {-1e300, 1e300};
        Result result(2, 1);
        group_advantages(rewards, {{}, 1}, by_group, result.out());
        check_near(result.advantages[1], std::sqrt(0.5L));
    }
    Result empty(0, 0);
    group_advantages({}, {{}, 0}, by_group, empty.out());
}

template <typename Call>
void check_refused(const Call& call) {
    bool refused = false;
    try {
        call();
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    CHECK(refused);
}

void check_refusals() {
    const std::vector<double> rewards = {1.0, 2.0, 3.0};
    const std::vector<std::int64_t> negative = {0, -1, 0}, high = {0, 2, 1}, few = {0, 1};
    const AdvantageOptions options = {AdvantageScale::none, false, 1e-4};
    Result result(3, 2), other(2, 2);
    check_refused([&] { group_advantages(rewards, {{}, 2}, options, result.out()); });
    check_refused([&] { group_advantages(rewards, {negative, 2}, options, result.out()); });
    check_refused([&] { group_advantages(rewards, {high, 2}, options, result.out()); });
    check_refused([&] { group_advantages(rewards, {few, 2}, options, result.out()); });
    check_refused([&] { group_advantages(rewards, {high, 3}, options, result.out()); });
    check_refused([&] { group_advantages(rewards, {{}, 1}, options, other.out()); });
}

}  // namespace

int main() {
    for (const AdvantageScale scale : {AdvantageScale::group, AdvantageScale::batch, AdvantageScale::none}) {
        for (const bool leave_one_out : {false, true}) {
            for (const bool by_id : {false, true}) {
                check_definition(7, 8, by_id, {scale, leave_one_out, 1e-4});
                check_definition(1, 5, by_id, {scale, leave_one_out, 0.5});
            }
        }
    }
    check_edges();
    check_refusals();
    return 0;
}
