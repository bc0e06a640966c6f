// For kernels.cpp alone (see there): the random numbers of stochastic rounding.
#pragma once

#include "vectors.h"

namespace fgrpo {
namespace {

// The product of the lanes' lower halves.
using Longs = Vector<uint64_t, kLanes / 2>;
inline Longs multiply_lower_halves(Longs a, Longs b) {
#if defined(__AVX512F__)
    return (Longs)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Longs)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Longs)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Philox4x32-10 for as many counters as there are 64-bit lanes. Upper halves hold rubbish until the end.
void uniform(uint64_t seed, uint64_t first, size_t N, float* __restrict uniform) {
    constexpr size_t counters = kLanes / 2;
    uint32_t words[4 * counters];
    for (size_t start = 0; start < N; start += 4 * counters) {
        Longs c0, c1, c2 = {}, c3 = {};
        for (size_t i = 0; i < counters; ++i) c0[i] = (first + start) / 4 + i;
        c1 = c0 >> 32;
        uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round) {
            const Longs product0 = multiply_lower_halves(c0, Longs{} + 0xD2511F53u);
            const Longs product1 = multiply_lower_halves(c2, Longs{} + 0xCD9E8D57u);
            c0 = (product1 >> 32) ^ c1 ^ k0;
            c1 = product1;
            c2 = (product0 >> 32) ^ c3 ^ k1;
            c3 = product0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        const Longs lower = (c0 & 0xffffffffu) | (c1 << 32), upper = (c2 & 0xffffffffu) | (c3 << 32);
        for (size_t i = 0; i < counters; ++i) {
            const uint64_t pair[2] = {lower[i], upper[i]};
            __builtin_memcpy(words + 4 * i, pair, sizeof(pair));
        }
        for (size_t i = 0; i < 4 * counters; ++i) {
            uniform[start + i] = static_cast<float>(static_cast<int>(words[i] >> 8)) * 0x1p-24f;
        }
    }
}

}  // namespace
}  // namespace fgrpo
