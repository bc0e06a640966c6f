#include "groups.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace fgrpo {

namespace {

// The mean is `lowest + centre`. Apart, the two keep the digits of rewards that differ by little next to their size.
struct Group {
    std::size_t rows = 0;
    double size = 0.0, lowest = 0.0, highest = 0.0, centre = 0.0,
           std = 0.0;  // of the rows that have a reward

    bool all_equal() const { return lowest == highest; }
    double deviation(double reward) const { return reward - lowest - centre; }
};

void require(bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument("group_advantages: " + what);
}

template <typename Index>
std::vector<Group> statistics(std::span<const double> rewards, std::size_t count, const Index& group_of) {
    std::vector<Group> groups(count);
    const auto each_scored = [&](const auto& work) {
        for (std::size_t b = 0; b < rewards.size(); ++b) {
            if (!std::isnan(rewards[b])) work(groups[group_of(b)], rewards[b]);
        }
    };
    for (std::size_t b = 0; b < rewards.size(); ++b) ++groups[group_of(b)].rows;
    each_scored([](Group& group, double reward) {
        group.lowest = group.size == 0.0 ? reward : std::min(group.lowest, reward);
        group.highest = group.size == 0.0 ? reward : std::max(group.highest, reward);
        group.size += 1.0;
    });
    each_scored([](Group& group, double reward) { group.centre += reward - group.lowest; });
    for (Group& group : groups) group.centre /= group.size;
    each_scored([](Group& group, double reward) {
        const double part = (reward - group.lowest - group.centre) / (group.highest - group.lowest);
        group.std += part * part;  // by the span: no overflow
    });
    for (Group& group : groups) {
        const double span = group.highest - group.lowest;
        group.std = group.all_equal() ? 0.0 : span * std::sqrt(group.std / (group.size - 1.0));
    }
    return groups;
}

}  // namespace

void group_advantages(std::span<const double> rewards, const Groups& groups, const AdvantageOptions& options,
                      const Advantages& out) {
    const std::size_t B = rewards.size(), S = groups.count;
    require(out.advantages.size() == B && out.mean.size() == S && out.std.size() == S &&
                out.degenerate.size() == S,
            "what is returned differs in length");
    if (groups.ids.empty()) {
        require(B == 0 || (S > 0 && B % S == 0),
                std::to_string(B) + " rewards do not divide into " + std::to_string(S) + " groups");
    } else {
        require(groups.ids.size() == B,
                std::to_string(groups.ids.size()) + " ids for " + std::to_string(B) + " rewards");
        for (const std::int64_t id : groups.ids) {
            require(id >= 0 && static_cast<std::uint64_t>(id) < S,
                    "group " + std::to_string(id) + " of " + std::to_string(S));
        }
    }
    const std::size_t length = S == 0 ? 1 : std::max<std::size_t>(1, B / S);
    const auto group_of = [&](std::size_t b) {
        return groups.ids.empty() ? b / length : static_cast<std::size_t>(groups.ids[b]);
    };
    const std::vector<Group> each = statistics(rewards, S, group_of);
    const Group batch = statistics(rewards, 1, [](std::size_t) { return std::size_t{0}; })[0];
    const auto compared_with = [&](std::size_t s) -> const Group& {
        return each[s].rows == 1 ? batch : each[s];
    };
    for (std::size_t b = 0; b < B; ++b) {
        const std::size_t s = group_of(b);
        const Group& compared = compared_with(s);
        double advantage = compared.deviation(rewards[b]);
        if (options.leave_one_out) {  // mean of the others = mean - (r - mean) / (size - 1)
            advantage *= compared.size / (compared.size - 1.0);
        }
        if (options.scale != AdvantageScale::none) {
            advantage /= (options.scale == AdvantageScale::batch ? batch.std : each[s].std) + options.eps;
        }
        out.advantages[b] = compared.all_equal() || std::isnan(rewards[b]) ? 0.0 : advantage;
    }
    for (std::size_t s = 0; s < S; ++s) {
        out.mean[s] = each[s].lowest + each[s].centre;
        out.std[s] = each[s].std;
        out.degenerate[s] = compared_with(s).all_equal();
    }
}

}  // namespace fgrpo
