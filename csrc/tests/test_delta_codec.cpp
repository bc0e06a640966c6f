// The contract of delta_codec.h, checked without Python: sizes, round trips, errors that leave outputs alone,
// and the same bits from every instruction set and thread count. Meant to run under sanitizers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <tuple>
#include <utility>

#include "check.h"
#include "delta_codec.h"

using namespace fgrpo;

namespace {

template <typename Error, typename Function>
std::string message_of(const Function& function) {
    try {
        function();
    } catch (const Error& error) {
        return error.what();
    }
    CHECK(!"nothing was thrown");
    return "";
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

constexpr Codec kCodecs[] = {Codec::int8, Codec::int4, Codec::int2, Codec::bf16, Codec::none};
constexpr std::size_t kSizes[] = {0, 1, 31, 32, 33, 63, 64, 65, 2047, 2048, 2049, 70001};

std::vector<float> gaussian(std::size_t size, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(size);
    for (float& value : values) value = normal(engine);
    return values;
}

// An encoded delta that owns its bytes, in buffers of exactly the size of the contract.
struct Owned {
    Owned(Format format, std::size_t size)
        : format(format), size(size), codes(code_bytes(format, size)), scales(scale_count(format, size)) {}
    Payload payload() const { return {format, size, codes, scales}; }
    bool operator==(const Owned& other) const { return codes == other.codes && scales == other.scales; }

    Format format;
    std::size_t size;
    std::vector<std::uint8_t> codes;
    std::vector<bfloat16> scales;
};

Owned encoded(const std::vector<float>& delta, Format format, Rounding rounding = Rounding::nearest,
              int threads = 1, Scaling scaling = Scaling::absmax) {
    Owned owned(format, delta.size());
    encode(std::span(delta), std::nullopt, {}, format, rounding, 7, owned.codes, owned.scales, threads,
           scaling);
    return owned;
}

void test_sizes() {
    CHECK(code_bytes({Codec::int8, 64}, 65) == 128 && scale_count({Codec::int8, 64}, 65) == 2);
    CHECK(code_bytes({Codec::int4, 32}, 1) == 16 && scale_count({Codec::int4, 32}, 1) == 1);
    CHECK(code_bytes({Codec::int2, 1024}, 1025) == 512 && scale_count({Codec::int2, 1024}, 1025) == 2);
    CHECK(code_bytes({Codec::bf16, 64}, 3) == 6 && scale_count({Codec::bf16, 64}, 3) == 0);
    CHECK(code_bytes({Codec::none, 64}, 3) == 12 && scale_count({Codec::none, 64}, 3) == 0);
    for (const Codec codec : kCodecs) CHECK(code_bytes({codec, 64}, 0) == 0);
    for (const std::size_t block : {0u, 16u, 48u, 2048u}) {
        CHECK(contains(message_of<std::invalid_argument>([&] { code_bytes({Codec::int8, block}, 1); }),
                       "block"));
    }
    for (const std::size_t size : {std::size_t{1} << 59, std::size_t{1} << 60, SIZE_MAX / 8}) {
        CHECK(code_bytes({Codec::none, 64}, size) == 4 * size &&
              code_bytes({Codec::bf16, 64}, size) == 2 * size);
    }
    const std::size_t huge = std::numeric_limits<std::size_t>::max();
    CHECK(
        contains(message_of<std::invalid_argument>([&] { code_bytes({Codec::int8, 64}, huge); }), "memory"));
    CHECK(contains(message_of<std::invalid_argument>([] { codec_named("int3"); }),
                   "int8, int4, int2, bf16, none"));
}

void test_round_trip_with_feedback() {
    for (const Codec codec : kCodecs) {
        for (const Scaling scaling : {Scaling::absmax, Scaling::mse}) {
            for (const std::size_t block : {32u, 64u, 1024u}) {
                for (const std::size_t size : kSizes) {
                    const std::vector<float> updated = gaussian(size, 1), base = gaussian(size, 2);
                    std::vector<float> residual = gaussian(size, 3), before = residual, out(size);
                    Owned owned({codec, block}, size);
                    encode(std::span(updated), Values(std::span(base)), residual, owned.format,
                           Rounding::nearest, 0, owned.codes, owned.scales, 0, scaling);
                    check(owned.payload());
                    decode(owned.payload(), out);
                    for (std::size_t i = 0; i < size; ++i) {
                        const float delta = (updated[i] - base[i]) + before[i];
                        CHECK(std::abs(out[i] + residual[i] - delta) < 1e-6f);
                        CHECK(codec != Codec::none || out[i] == delta);
                    }
                }
            }
        }
    }
}

using Encoding = std::tuple<Rounding, Scaling>;
constexpr Encoding kEncodings[] = {{Rounding::nearest, Scaling::absmax},
                                   {Rounding::stochastic, Scaling::absmax},
                                   {Rounding::nearest, Scaling::mse}};

void test_same_bits_everywhere() {
    const std::vector<float> delta = gaussian(140001, 4);
    const std::vector<float> weights = {0.1f, -2.0f, 0.0f, 1e-3f, 0.7f};
    for (const Codec codec : kCodecs) {
        for (const auto& [rounding, scaling] : kEncodings) {
            use_simd(simd_levels().front());
            const Owned expected = encoded(delta, {codec, 64}, rounding, 1, scaling);
            std::vector<float> expected_sum(delta.size());
            std::vector<ClientStats> expected_stats(5), stats(5);
            const std::vector<Payload> payloads(5, expected.payload());
            aggregate_with_stats(payloads, weights, expected_sum, expected_stats, 1);
            for (const std::string& level : simd_levels()) {
                use_simd(level);
                for (const int threads : {1, 2, 5}) {
                    CHECK(encoded(delta, {codec, 64}, rounding, threads, scaling) == expected);
                    std::vector<float> sum(delta.size(), NAN);
                    aggregate(payloads, weights, sum, threads);
                    CHECK(sum == expected_sum);
                    aggregate_with_stats(payloads, weights, sum, stats, threads);
                    CHECK(sum == expected_sum);
                    for (std::size_t k = 0; k < 5; ++k) {
                        CHECK(stats[k].squared_norm == expected_stats[k].squared_norm);
                        CHECK(stats[k].dot_with_mean == expected_stats[k].dot_with_mean);
                    }
                }
            }
        }
    }
}

// Payloads with equal weights and formats, some of which differ in their last byte only or not at all; long enough
// that this shows only while they are added up.
void test_any_order_gives_the_same_sum() {
    const std::size_t size = 20000;
    std::vector<Owned> owned;
    for (unsigned k = 0; k < 24; ++k) {
        owned.push_back(encoded(gaussian(size, 20 + k / 2), {kCodecs[k % 5], k % 3 ? 64u : 32u}));
    }
    owned[7] = owned[2];
    owned[12] = owned[2];
    owned[12].codes.back() ^= 1;
    std::vector<std::pair<Payload, float>> terms;
    for (std::size_t k = 0; k < owned.size(); ++k) {
        terms.emplace_back(owned[k].payload(), k % 4 ? 1.0f / 24 : 0.1f);
    }
    std::mt19937 engine(0);
    std::vector<float> expected;
    for (int trial = 0; trial < 50; ++trial) {
        std::vector<Payload> payloads;
        std::vector<float> weights, sum(size);
        for (const auto& [payload, weight] : terms) {
            payloads.push_back(payload);
            weights.push_back(weight);
        }
        aggregate(payloads, weights, sum, 1 + trial % 3);
        if (trial == 0) expected = sum;
        CHECK(sum == expected);
        std::shuffle(terms.begin(), terms.end(), engine);
    }
}

// Whatever encode() writes passes check(): where scales are the largest, and where they would be subnormal.
void test_extreme_scales() {
    const auto round_trip = [](const std::vector<float>& delta) {
        for (const Codec codec : kCodecs) {
            for (const Scaling scaling : {Scaling::absmax, Scaling::mse}) {
                Owned owned({codec, 32}, delta.size());
                encode(std::span(delta), std::nullopt, {}, owned.format, Rounding::nearest, 0, owned.codes,
                       owned.scales, 0, scaling);
                check(owned.payload());
                std::vector<float> out(delta.size());
                decode(owned.payload(), out);
                for (const float value : out) CHECK(std::isfinite(value));
            }
        }
    };
    std::vector<float> delta = gaussian(1000, 30);
    for (float& value : delta) value *= 0x1p124f;
    delta[100] = 0x1p127f;
    delta[500] = -0x1p127f;
    round_trip(delta);
    for (int peak_code = 1; peak_code <= 130; ++peak_code) {
        delta = gaussian(64, static_cast<unsigned>(peak_code));
        for (float& value : delta) value *= 0x1p-122f;
        const float peak = 0x1.01p-126f * static_cast<float>(peak_code);
        for (float& value : delta) value = std::min(std::max(value, -peak), peak);
        delta[3] = peak;
        round_trip(delta);
    }
}

void test_what_cannot_be_encoded() {
    const std::vector<float> base(100000, 1.0f), start = gaussian(100000, 5);
    for (const float bad : {NAN, INFINITY, -INFINITY, 3e38f}) {
        for (const std::size_t index : {0u, 77777u, 99999u}) {
            std::vector<float> updated = gaussian(100000, 6), residual = start;
            updated[index] = updated[99999] = bad;
            Owned owned({Codec::int4, 64}, updated.size());
            try {
                encode(std::span(updated), Values(std::span(base)), residual, owned.format, Rounding::nearest,
                       0, owned.codes, owned.scales, 3);
                CHECK(!"nothing was thrown");
            } catch (const NotEncodable& error) {
                CHECK(error.index == index);
                CHECK(contains(error.what(), "index " + std::to_string(index) + " "));
            }
            CHECK(residual == start);
        }
    }
}

void test_wrong_arguments() {
    const std::vector<float> delta = gaussian(1000, 7);
    Owned owned = encoded(delta, {Codec::int8, 64});
    std::vector<float> out(1000), small(999);
    const auto refused = [](const auto& function, const char* part) {
        CHECK(contains(message_of<std::invalid_argument>(function), part));
    };
    const auto encode_with = [&](std::span<float> residual, std::span<std::uint8_t> codes) {
        encode(std::span(delta), std::nullopt, residual, owned.format, Rounding::nearest, 0, codes,
               owned.scales);
    };
    refused([&] { encode_with(small, owned.codes); }, "residual has 999");
    refused([&] { encode_with({}, std::span(owned.codes).first(10)); }, "got 10 and 16");
    refused([&] { encode_with({const_cast<float*>(delta.data()), 1000}, owned.codes); }, "shares memory");
    refused([&] { decode(owned.payload(), small); }, "out has 999");

    const std::vector<Payload> payloads = {owned.payload(), owned.payload()};
    refused([&] { aggregate({}, {}, out); }, "no payloads");
    refused([&] { aggregate(payloads, std::vector{1.0f}, out); }, "1 weights");
    refused([&] { aggregate(payloads, std::vector{1.0f, NAN}, out); }, "weight 1 is nan");
    refused([&] { aggregate(payloads, std::vector{1.0f, 1.0f}, small); }, "expected 999");
    refused([&] { aggregate(payloads, std::vector{1.0f, 1.0f}, out, -1); }, "threads");
    std::vector<ClientStats> stats(1);
    refused([&] { aggregate_with_stats(payloads, std::vector{1.0f, 1.0f}, out, stats); }, "1 statistics");
    refused(
        [&] {
            encode(std::span(delta), std::nullopt, {}, owned.format, Rounding::stochastic, 0, owned.codes,
                   owned.scales, 0, Scaling::mse);
        },
        "'mse' goes with");
}

void test_check_names_the_fault() {
    for (const Codec codec : {Codec::int8, Codec::int4, Codec::int2}) {
        const Owned good = encoded(gaussian(1000, 8), {codec, 64});
        check(good.payload());
        const auto fault = [&](auto change) {
            Owned bad = good;
            change(bad);
            std::vector<float> out(bad.size);
            decode(bad.payload(), out);  // harmless, whatever the bytes
            return message_of<std::invalid_argument>([&] { check(bad.payload()); });
        };
        CHECK(contains(fault([](Owned& bad) { bad.codes.back() = 0x40; }), "padding code"));
        CHECK(contains(fault([](Owned& bad) { bad.scales[3] = bfloat16{0x7fc0}; }), "scale 3 is nan"));
        CHECK(contains(fault([](Owned& bad) { bad.scales[4] = bfloat16{0xff80}; }), "scale 4 is -inf"));
        CHECK(contains(fault([](Owned& bad) { bad.scales[5] = bfloat16{0x8000}; }), "scale 5 is -0"));
        if (codec != Codec::int2) continue;
        CHECK(contains(fault([](Owned& bad) {
                           bad.codes[16] = 0x02;
                           bad.scales[1] = bfloat16{0x7f00};
                       }),
                       "index 64, code -2"));
    }
    for (const Codec codec : {Codec::bf16, Codec::none}) {
        Owned bad = encoded(gaussian(1000, 8), {codec, 64});
        check(bad.payload());
        bad.codes.back() = 0x7f;
        bad.codes[bad.codes.size() - 2] = 0x80;
        CHECK(contains(message_of<std::invalid_argument>([&] { check(bad.payload()); }), "index 999"));
    }
}

}  // namespace

int main() {
    test_sizes();
    test_round_trip_with_feedback();
    test_same_bits_everywhere();
    test_any_order_gives_the_same_sum();
    test_extreme_scales();
    test_what_cannot_be_encoded();
    test_wrong_arguments();
    test_check_names_the_fault();
    std::puts("8 passed, 0 failed");
}
