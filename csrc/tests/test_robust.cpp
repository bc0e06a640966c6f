// The contract of robust.h, checked without Python: against sorting, for every instruction set, thread count and
// order of the payloads. Meant to run under sanitizers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "check.h"
#include "robust.h"

using namespace fgrpo;

namespace {

// A payload that owns its bytes, and what they decode to.
struct Owned {
    Owned(const std::vector<float>& delta, Format format)
        : format(format),
          codes(code_bytes(format, delta.size())),
          scales(scale_count(format, delta.size())),
          values(delta.size()) {
        encode(std::span(delta), std::nullopt, {}, format, Rounding::nearest, 0, codes, scales, 1);
        decode(payload(), values, 1);
    }
    Payload payload() const { return {format, values.size(), codes, scales}; }

    Format format;
    std::vector<std::uint8_t> codes;
    std::vector<bfloat16> scales;
    std::vector<float> values;
};

std::vector<Owned> clients(std::size_t K, std::size_t size) {
    constexpr Codec codecs[] = {Codec::int8, Codec::int4, Codec::int2, Codec::none};
    constexpr std::size_t blocks[] = {32, 64, 1024};
    std::mt19937 engine(static_cast<unsigned>(K * 1000 + size));
    std::normal_distribution<float> normal;
    std::vector<Owned> owned;
    for (std::size_t k = 0; k < K; ++k) {
        std::vector<float> delta(size);
        for (float& value : delta) value = normal(engine) > 1.0f ? -0.0f : normal(engine);
        owned.emplace_back(delta, Format{codecs[k % 4], blocks[k % 3]});
    }
    return owned;
}

std::vector<Payload> payloads_of(const std::vector<Owned>& owned) {
    std::vector<Payload> payloads;
    for (const Owned& one : owned) payloads.push_back(one.payload());
    return payloads;
}

// The definition, by a sort that puts -0 before 0.
std::vector<float> sorted_mean(const std::vector<Owned>& owned, std::size_t trim) {
    const std::size_t K = owned.size();
    std::vector<float> mean(owned[0].values.size()), column(K);
    for (std::size_t i = 0; i < mean.size(); ++i) {
        for (std::size_t k = 0; k < K; ++k) column[k] = owned[k].values[i];
        std::sort(column.begin(), column.end(),
                  [](float a, float b) { return a < b || (a == b && std::signbit(a) && !std::signbit(b)); });
        float sum = column[trim];
        for (std::size_t k = trim + 1; k < K - trim; ++k) sum += column[k];
        mean[i] = sum / static_cast<float>(K - 2 * trim);
    }
    return mean;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void test_equals_sorting() {
    for (const std::size_t size : {0u, 1u, 63u, 64u, 65u, 1025u, 9001u}) {
        for (const std::size_t K : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 31u, 64u}) {
            const std::vector<Owned> owned = clients(K, size);
            std::vector<Payload> payloads = payloads_of(owned);
            for (const std::size_t trim : {std::size_t{0}, (K - 1) / 4, (K - 1) / 2}) {
                const std::vector<float> expected = sorted_mean(owned, trim);
                for (const std::string& level : simd_levels()) {
                    use_simd(level);
                    for (const int threads : {1, 3}) {
                        std::vector<float> out(size, NAN);
                        trimmed_mean(payloads, trim, out, threads);
                        CHECK(same_bits(out, expected));
                        std::reverse(payloads.begin(), payloads.end());
                    }
                }
            }
        }
    }
}

void test_norms() {
    const std::vector<Owned> owned = clients(6, 200001);
    const std::vector<Payload> payloads = payloads_of(owned);
    std::vector<double> first(6), again(6);
    use_simd(simd_levels().front());
    norms(payloads, first, 1);
    for (std::size_t k = 0; k < 6; ++k) {
        long double squares = 0;
        for (const float value : owned[k].values) squares += static_cast<long double>(value) * value;
        CHECK(std::abs(first[k] / static_cast<double>(std::sqrt(squares)) - 1) < 1e-14);
    }
    for (const std::string& level : simd_levels()) {
        use_simd(level);
        norms(payloads, again, 5);
        CHECK(again == first);
    }
}

template <typename Function>
void refused(const Function& function, const std::string& part) {
    try {
        function();
    } catch (const std::invalid_argument& error) {
        CHECK(std::string(error.what()).find(part) != std::string::npos);
        return;
    }
    CHECK(!"nothing was thrown");
}

void test_wrong_arguments() {
    std::vector<Owned> owned = clients(5, 300);
    std::vector<Payload> payloads = payloads_of(owned);
    std::vector<float> out(300), small(299);
    std::vector<double> lengths(5), few(4);
    refused([&] { trimmed_mean({}, 0, out); }, "no payloads");
    refused([&] { trimmed_mean(payloads, 3, out); }, "leaves none of 5 payloads; it may be at most 2");
    refused([&] { trimmed_mean(payloads, SIZE_MAX, out); }, "leaves none");
    refused([&] { trimmed_mean(payloads, 1, small); }, "out has 299");
    refused([&] { trimmed_mean(payloads, 1, out, -1); }, "threads");
    refused([&] { trimmed_mean(std::vector<Payload>(65, payloads[0]), 1, out); }, "at most 64");
    float* exact = reinterpret_cast<float*>(owned[3].codes.data());  // codec none
    refused([&] { trimmed_mean(payloads, 1, {exact, 300}); }, "payload 3 shares memory");
    refused([&] { norms({}, {}); }, "no payloads");
    refused([&] { norms(payloads, few); }, "room for 4");
    payloads[0].size = 100;
    refused([&] { trimmed_mean(payloads, 1, out); }, "payload 0: 100 values need 128 bytes");
    payloads[0].size = 300;
    const std::vector<Owned> other = clients(1, 100);
    payloads[2] = other[0].payload();
    refused([&] { norms(payloads, lengths); }, "payload 2 has 100 parameters, payload 0 has 300");
}

void test_values_that_are_not_finite() {
    for (const std::uint16_t scale : {0x7f80, 0xff80, 0x7fc0}) {
        std::vector<Owned> owned = clients(5, 20000);
        owned[4].scales[100] = bfloat16{scale};  // int8 in blocks of 64
        const std::vector<Payload> payloads = payloads_of(owned);
        std::vector<float> out(20000);
        std::vector<double> lengths(5);
        for (const std::string& level : simd_levels()) {
            use_simd(level);
            refused([&] { trimmed_mean(payloads, 1, out, 2); }, "payload 4 has the value");
            refused([&] { norms(payloads, lengths, 2); }, "at index 6400");
        }
    }
}

}  // namespace

int main() {
    test_equals_sorting();
    test_norms();
    test_wrong_arguments();
    test_values_that_are_not_finite();
    std::puts("4 passed, 0 failed");
}
