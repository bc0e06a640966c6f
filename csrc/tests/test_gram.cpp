// The contract of gram.h, checked without Python: against the products of decoded values, for every instruction set
// and thread count, and that an entry depends on its two payloads alone. Meant to run under sanitizers.
#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "gram.h"

using namespace fgrpo;

namespace {

// A payload that owns its bytes, in buffers of exactly the size of the contract, and what they decode to.
struct Owned {
    Owned(const std::vector<float>& delta, Format format, Scaling scaling)
        : format(format),
          codes(code_bytes(format, delta.size())),
          scales(scale_count(format, delta.size())),
          values(delta.size()) {
        encode(std::span(delta), std::nullopt, {}, format, Rounding::nearest, 0, codes, scales, 1, scaling);
        decode(payload(), values, 1);
    }
    Payload payload() const { return {format, values.size(), codes, scales}; }

    Format format;
    std::vector<std::uint8_t> codes;
    std::vector<bfloat16> scales;
    std::vector<float> values;
};

// Every codec with every other one, and blocks that agree and do not; lowest codes, which have no counterpart.
std::vector<Owned> clients(std::size_t K, std::size_t size) {
    constexpr Codec codecs[] = {Codec::int8, Codec::int4, Codec::int2, Codec::bf16, Codec::none};
    constexpr std::size_t blocks[] = {64, 64, 32, 1024, 256, 128, 512};
    std::mt19937 engine(static_cast<unsigned>(K * 1000 + size));
    std::normal_distribution<float> normal;
    std::vector<Owned> owned;
    for (std::size_t k = 0; k < K; ++k) {
        std::vector<float> delta(size);
        for (float& value : delta) value = std::ldexp(normal(engine), static_cast<int>(k % 5) * 3);
        owned.emplace_back(delta, Format{codecs[k % 5], blocks[k % 7]},
                           k % 2 ? Scaling::mse : Scaling::absmax);
    }
    return owned;
}

std::vector<Payload> payloads_of(const std::vector<Owned>& owned) {
    std::vector<Payload> payloads;
    for (const Owned& one : owned) payloads.push_back(one.payload());
    return payloads;
}

long double product(const std::vector<float>& a, const std::vector<float>& b) {
    long double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<long double>(a[i]) * b[i];
    return sum;
}

void test_products() {
    for (const std::size_t size : {0u, 1u, 31u, 33u, 65u, 1023u, 1025u, 70001u}) {
        for (const std::size_t K : {1u, 2u, 5u, 33u, 71u}) {
            if (K > 5 && size > 2000) continue;
            const std::vector<Owned> owned = clients(K, size);
            const std::vector<Payload> payloads = payloads_of(owned);
            std::vector<double> expected(K * K, NAN), squares(K);
            use_simd(simd_levels().front());
            gram(payloads, expected, 1);
            for (std::size_t k = 0; k < K; ++k) {
                for (std::size_t m = 0; m <= k; ++m) {
                    const long double bound = std::sqrt(product(owned[k].values, owned[k].values) *
                                                        product(owned[m].values, owned[m].values));
                    const long double error = expected[k * K + m] - product(owned[k].values, owned[m].values);
                    CHECK(std::abs(error) <= 1e-14L * bound);
                    CHECK(expected[k * K + m] == expected[m * K + k]);
                }
            }
            for (const std::string& level : simd_levels()) {
                use_simd(level);
                for (const int threads : {1, 3}) {
                    std::vector<double> again(K * K, NAN);
                    gram(payloads, again, threads);
                    CHECK(again == expected);
                    gram(payloads, payloads, again, threads);
                    CHECK(again == expected);
                }
                squared_norms(payloads, squares, 2);
                for (std::size_t k = 0; k < K; ++k) CHECK(squares[k] == expected[k * K + k]);
            }
        }
    }
}

// Any part of the lists in any order gives the same entries.
void test_entries_depend_on_their_payloads_alone() {
    const std::size_t K = 40, M = 7;
    const std::vector<Owned> owned = clients(K, 3000);
    const std::vector<Payload> payloads = payloads_of(owned);
    std::vector<double> all(K * K), some(M * K);
    gram(payloads, all);
    std::vector<std::size_t> places(K);
    for (std::size_t k = 0; k < K; ++k) places[k] = k;
    std::mt19937 engine(1);
    for (int trial = 0; trial < 5; ++trial) {
        std::shuffle(places.begin(), places.end(), engine);
        std::vector<Payload> shuffled;
        for (const std::size_t place : places) shuffled.push_back(payloads[place]);
        gram(std::span(shuffled).first(M), shuffled, some);
        for (std::size_t i = 0; i < M; ++i) {
            for (std::size_t j = 0; j < K; ++j) CHECK(some[i * K + j] == all[places[i] * K + places[j]]);
        }
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
    const std::vector<Owned> owned = clients(5, 300), short_ones = clients(1, 100);
    const std::vector<Payload> payloads = payloads_of(owned), shorter = payloads_of(short_ones);
    std::vector<double> out(25);
    refused([&] { gram({}, out); }, "gram: no payloads");
    refused([&] { gram(payloads, std::span<const Payload>(), out); }, "gram: no others");
    refused([&] { gram(payloads, std::span(out).first(24)); }, "25 results but room for 24");
    refused([&] { gram(payloads, shorter, out); }, "gram: other 0 has 100 parameters, payload 0 has 300");
    refused([&] { gram(payloads, out, -1); }, "threads");
    const std::span<double> shared(
        reinterpret_cast<double*>(const_cast<std::uint8_t*>(owned[4].codes.data())),
        25);  // codec none
    refused([&] { gram(payloads, shared); }, "shares memory");
}

// Also values that only their product takes beyond float32, of which the integers would show nothing.
void test_values_that_are_not_finite() {
    std::vector<double> out(5), all(25);
    const auto named = [&](const std::vector<Owned>& owned, const std::string& fault) {
        const std::vector<Payload> payloads = payloads_of(owned);
        for (const std::string& level : simd_levels()) {
            use_simd(level);
            refused([&] { gram(payloads, all, 2); }, "gram: payload " + fault);
            refused([&] { gram(payloads, std::span(payloads).first(1), out, 2); }, "gram: payload " + fault);
            refused([&] { gram(std::span(payloads).last(1), payloads, out, 2); }, "gram: ");
        }
    };
    for (const std::uint16_t scale : {0x7f80, 0xff80, 0x7fc0}) {
        std::vector<Owned> owned = clients(5, 2000);
        owned[1].scales[2] = bfloat16{scale};  // int4 in blocks of 64
        named(owned, "1 has the value");
    }
    std::vector<Owned> owned = clients(5, 2000);
    owned[0].scales[3] = bfloat16{0x7e80};
    owned[0].codes[3 * 64] = 100;
    named(owned, "0 has the value inf at index 192");
    owned = clients(5, 2000);
    owned[3].codes[2 * 7 + 1] = 0x7f;
    owned[3].codes[2 * 7] = 0xc0;
    named(owned, "3 has the value nan at index 7");
    // The largest scale of int2 is one that only the code -2 does not go with.
    owned = clients(5, 64);
    for (std::uint8_t& codes : owned[2].codes) codes = 0x55;
    for (bfloat16& scale : owned[2].scales) scale = bfloat16{0x7f00};
    gram(payloads_of(owned), all, 2);
    CHECK(all[2 * 5 + 2] == 64 * 0x1p254);
}

}  // namespace

int main() {
    test_products();
    test_entries_depend_on_their_payloads_alone();
    test_wrong_arguments();
    test_values_that_are_not_finite();
    std::puts("4 passed, 0 failed");
}
