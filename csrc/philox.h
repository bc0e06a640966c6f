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

// Each lane's upper half, moved down; what is left above is not used.
inline Longs upper_halves(Longs a) {
#if defined(__AVX512F__)
    return (Longs)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_DDBB);  // on another port than the products
#else
    return a >> 32;
#endif
}

// The lower half of each lane of a, and above it that of b.
inline Longs joined_halves(Longs a, Longs b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (Longs)_mm256_blend_epi32((__m256i)a, (__m256i)(b << 32), 0b10101010);
#else
    return (a & 0xffffffffu) | (b << 32);
#endif
}

// Lane 0 of a, lane 0 of b, lane 1 of a, ..., in pieces of 16 bits.
inline void store_in_turn(uint16_t* to, Longs a, Longs b) {
#if defined(__AVX512F__)
    const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    store(to, _mm512_permutex2var_epi64((__m512i)a, first, (__m512i)b));
    store(to + 32, _mm512_permutex2var_epi64((__m512i)a, second, (__m512i)b));
#elif defined(__AVX2__)
    const __m256i even = _mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
    const __m256i odd = _mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
    store(to, _mm256_permute2x128_si256(even, odd, 0x20));
    store(to + 16, _mm256_permute2x128_si256(even, odd, 0x31));
#else
    for (size_t i = 0; i < kLanes / 2; ++i) {
        const uint64_t pair[2] = {a[i], b[i]};
        __builtin_memcpy(to + 8 * i, pair, sizeof(pair));
    }
#endif
}

// Philox4x32-10 for as many counters as there are 64-bit lanes in kSets vectors: the rounds of one counter wait for
// each other, those of two sets do not. Upper halves hold rubbish until the end.
void random_bits(uint64_t seed, uint64_t first, size_t N, uint16_t* random) {
    constexpr size_t kSets = 2, counters = kLanes / 2, values = 8 * counters;
    Longs counter;
    for (size_t i = 0; i < counters; ++i) counter[i] = first / 8 + i;
    for (size_t start = 0; start < N; start += kSets * values) {
        Longs c0[kSets], c1[kSets], c2[kSets] = {}, c3[kSets] = {};
        for (size_t set = 0; set < kSets; ++set) {
            c0[set] = counter + set * counters;
            c1[set] = c0[set] >> 32;
        }
        uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
            for (size_t set = 0; set < kSets; ++set) {
                const Longs product0 = multiply_lower_halves(c0[set], Longs{} + 0xD2511F53u);
                const Longs product1 = multiply_lower_halves(c2[set], Longs{} + 0xCD9E8D57u);
                c0[set] = upper_halves(product1) ^ (c1[set] ^ k0);
                c1[set] = product1;
                c2[set] = upper_halves(product0) ^ (c3[set] ^ k1);
                c3[set] = product0;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        for (size_t set = 0; set < kSets; ++set) {
            store_in_turn(random + start + set * values, joined_halves(c0[set], c1[set]),
                          joined_halves(c2[set], c3[set]));
        }
        counter += kSets * counters;
    }
}

}  // namespace
}  // namespace fgrpo
