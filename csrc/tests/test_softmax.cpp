// The contract of softmax.h, checked without Python: against long double, for every instruction set and thread count.
// Meant to run under sanitizers.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "delta_codec.h"
#include "softmax.h"

using namespace fgrpo;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::uint16_t to_bfloat16(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float from_bfloat16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

// Rows that own their memory, `stride` items apart, of exactly the bytes they need.
struct Rows {
    Rows(std::size_t n, std::size_t vocab, std::size_t stride, LogitType type, float scale)
        : n(n), vocab(vocab), type(type), items((n - 1) * stride + vocab) {
        std::mt19937 engine(static_cast<unsigned>(n * 1000 + vocab));
        std::normal_distribution<float> normal(0.0f, scale);
        for (std::size_t i = 0; i < n; ++i) {
            starts.push_back(static_cast<std::int64_t>(i * stride));
            targets.push_back(static_cast<std::int64_t>(engine() % vocab));
        }
        targets[0] = 0;
        targets.back() = static_cast<std::int64_t>(vocab) - 1;
        bytes.resize(items * (type == LogitType::float32 ? 4 : 2));
        for (std::size_t j = 0; j < items; ++j) set(j, normal(engine));
        for (auto* of_row : {&logp, &entropy, &peak, &log_sum}) of_row->resize(n);
    }
    void set(std::size_t j, float value) {
        const std::uint16_t half = to_bfloat16(value);
        if (type == LogitType::float32)
            std::memcpy(bytes.data() + 4 * j, &value, 4);
        else
            std::memcpy(bytes.data() + 2 * j, &half, 2);
    }
    float get(const std::vector<char>& from, std::size_t j) const {
        float value;
        std::uint16_t half;
        if (type == LogitType::float32) return std::memcpy(&value, from.data() + 4 * j, 4), value;
        return std::memcpy(&half, from.data() + 2 * j, 2), from_bfloat16(half);
    }
    RowStatistics statistics() { return {logp, entropy, peak, log_sum}; }
    LogitRows<const void> logits() const { return {bytes.data(), starts, vocab, type}; }
    void measure(double temperature, int threads) {
        row_statistics(logits(), targets, temperature, statistics(), threads);
    }
    std::vector<char> gradients(double temperature, std::span<const float> g, std::span<const float> e,
                                int threads) {
        std::vector<char> grad(bytes.size());
        row_gradients(logits(), targets, temperature, statistics(), g, e, {grad.data(), starts, vocab, type},
                      threads);
        return grad;
    }

    std::size_t n, vocab;
    LogitType type;
    std::size_t items;
    std::vector<std::int64_t> starts, targets;
    std::vector<char> bytes;
    std::vector<float> logp, entropy, peak, log_sum;
};

bool near(double got, long double exact, double relative, double absolute) {
    return std::abs(static_cast<long double>(got) - exact) <= relative * std::abs(exact) + absolute;
}

void check_against_long_double(std::size_t n, std::size_t vocab, LogitType type, double temperature,
                               float scale) {
    Rows rows(n, vocab, vocab + 3, type, scale);
    rows.measure(temperature, 1);
    const std::vector<float> g(n, 0.7f), e(n, -0.3f);
    const std::vector<char> plain = rows.gradients(temperature, g, {}, 1),
                            both = rows.gradients(temperature, g, e, 1);
    const double last = type == LogitType::float32 ? 1e-6 : 0.004;
    for (std::size_t i = 0; i < n; ++i) {
        const auto start = static_cast<std::size_t>(rows.starts[i]);
        std::vector<long double> z(vocab);
        long double peak = -kInfinity, total = 0, entropy = 0;
        for (std::size_t j = 0; j < vocab; ++j) {
            z[j] = static_cast<long double>(rows.get(rows.bytes, start + j)) / temperature;
            peak = std::max(peak, z[j]);
        }
        for (const long double value : z) total += std::exp(value - peak);
        const long double lse = peak + std::log(total);
        for (const long double value : z) entropy -= std::exp(value - lse) * (value - lse);
        const auto target = static_cast<std::size_t>(rows.targets[i]);
        CHECK(near(rows.logp[i], z[target] - lse, 2e-7, 1e-30));
        CHECK(near(rows.entropy[i], entropy, 1e-6, 1e-6));
        CHECK(near(rows.peak[i] / temperature + rows.log_sum[i], lse, 2e-7, 1e-7));
        for (std::size_t j = 0; j < vocab; ++j) {
            const long double p = std::exp(z[j] - lse), is_target = j == target ? 1 : 0;
            const long double of_logp = 0.7f * (is_target - p) / temperature;
            const long double of_entropy = 0.3f * p * (z[j] - lse + entropy) / temperature;
            // Under e^-87 a probability is 0.
            const double room =
                4e-6 * static_cast<double>(p) * (1.0 + static_cast<double>(lse - z[j])) + 1e-36;
            CHECK(near(rows.get(plain, start + j), of_logp, last, room));
            CHECK(near(rows.get(both, start + j), of_logp + of_entropy, last, room));
        }
    }
}

void check_threads_and_widths() {
    for (const LogitType type : {LogitType::float32, LogitType::bfloat16}) {
        Rows rows(37, 9001, 9001, type, 4.0f);
        const std::vector<float> g(37, 1.0f);
        rows.measure(0.7, 1);
        const std::vector<float> first = rows.logp;
        const std::vector<char> grad = rows.gradients(0.7, g, {}, 1);
        for (const int threads : {2, 5, 0}) {
            rows.measure(0.7, threads);
            CHECK(rows.logp == first);
            CHECK(rows.gradients(0.7, g, {}, threads) == grad);
        }
        const auto in_place = rows.bytes;
        row_gradients(rows.logits(), rows.targets, 0.7, rows.statistics(), g, {},
                      {rows.bytes.data(), rows.starts, rows.vocab, type}, 2);
        CHECK(rows.bytes == grad);
        rows.bytes = in_place;
    }
}

void check_strange_values() {
    Rows rows(7, 200, 200, LogitType::float32, 1.0f);
    rows.targets = {5, 5, 5, 5, 5, 5, 5};
    rows.set(0 * 200 + 77, kNaN);
    rows.set(1 * 200 + 199, kInfinity);
    for (std::size_t j = 0; j < 200; ++j) rows.set(2 * 200 + j, -kInfinity);
    for (std::size_t j = 0; j < 200; ++j)
        rows.set(3 * 200 + j, j == 5 ? 1.0f : -kInfinity);  // one token is left
    rows.set(4 * 200 + 5, -kInfinity);                      // the target is not
    rows.set(5 * 200 + 5, 30.0f);                           // far ahead
    for (std::size_t j = 0; j < 200; ++j)
        rows.set(6 * 200 + j, j == 9 ? std::bit_cast<float>(0xffc00001u) : 0.0f);
    rows.measure(1.0, 1);
    for (const std::size_t i : {0u, 1u, 2u, 6u}) {
        CHECK(std::isnan(rows.logp[i]));
        CHECK(std::isnan(rows.entropy[i]));
    }
    CHECK(rows.logp[3] == 0.0f && rows.entropy[3] == 0.0f);
    CHECK(rows.logp[4] == -kInfinity && std::isfinite(rows.entropy[4]));
    CHECK(rows.logp[5] < 0.0f && rows.logp[5] > -1e-9f);
    const std::vector<float> g(7, 1.0f), e(7, 1.0f);
    const std::vector<char> grad = rows.gradients(1.0, g, e, 1);
    for (std::size_t j = 0; j < 200; ++j) {
        CHECK(std::isnan(rows.get(grad, 0 * 200 + j)));
        CHECK(rows.get(grad, 3 * 200 + j) == 0.0f);
        CHECK(std::isfinite(rows.get(grad, 4 * 200 + j)));
        CHECK(std::isnan(rows.get(grad, 6 * 200 + j)));
    }
    CHECK(rows.get(grad, 4 * 200 + 5) == 1.0f);
    CHECK(rows.get(rows.gradients(1.0, g, {}, 1), 5 * 200 + 5) > 0.0f);
}

void check_refusals() {
    for (const std::int64_t target : {std::int64_t{-1}, std::int64_t{200}, INT64_MAX}) {
        Rows rows(3, 200, 200, LogitType::float32, 1.0f);
        rows.targets[1] = target;
        bool refused = false;
        try {
            rows.measure(1.0, 1);
        } catch (const std::invalid_argument& error) {
            refused = std::string(error.what()).find(std::to_string(target)) != std::string::npos;
        }
        CHECK(refused);
    }
}

}  // namespace

int main() {
    for (const std::string& level : simd_levels()) {
        use_simd(level);
        for (const LogitType type : {LogitType::float32, LogitType::bfloat16}) {
            for (const std::size_t vocab : {1u, 2u, 15u, 63u, 64u, 65u, 1000u, 5000u}) {
                check_against_long_double(3, vocab, type, 1.0, 3.0f);
                check_against_long_double(2, vocab, type, 0.7, 30.0f);
            }
        }
        check_threads_and_widths();
        check_strange_values();
        check_refusals();
    }
    std::puts("softmax: ok");
    return 0;
}
