// For the kernels' sources alone (see kernels.cpp): codes as 16-bit integers, and sums of their products.
#pragma once

#include "gram_kernels.h"
#include "vectors.h"

namespace fgrpo {
namespace {

inline constexpr size_t kShorts = 2 * kLanes;  // fill one register
using Shorts = Vector<int16_t, kShorts>;
using Ints = Vector<int, kLanes>;
#if defined(__AVX2__)
using Four = Vector<double, 4>;
#else
using Four = double[4];  // no register holds it
#endif

// Bytes as 16-bit integers with their sign.
template <size_t lanes>
inline Vector<int16_t, lanes> load_shorts(const uint8_t* from) {
#if defined(__AVX512F__)
    if constexpr (lanes == 32)
        return (Vector<int16_t, 32>)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
#endif
#if defined(__AVX2__)
    if constexpr (lanes == 16)
        return (Vector<int16_t, 16>)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
#endif
#if defined(__SSE2__)
    if constexpr (lanes == 8) {
        const __m128i bytes = _mm_loadl_epi64((const __m128i*)from);
        return (Vector<int16_t, 8>)_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
    }
#endif
    Vector<int16_t, lanes> wide;
    for (size_t i = 0; i < lanes; ++i) wide[i] = static_cast<int8_t>(from[i]);
    return wide;
}

template <int bits, size_t lanes>
inline void unpack_blocks(const uint8_t* codes, size_t block, size_t N, int16_t* unpacked) {
    constexpr size_t slots = 8 / bits;
    const size_t bytes = block / slots;
    for (size_t first = 0; first < N; first += block, codes += bytes) {
        for (size_t i = 0; i < bytes; i += lanes) {
            const auto packed = load_shorts<lanes>(codes + i);
            __builtin_prefetch(codes + i + kChunk / slots);
#pragma GCC unroll 4
            for (size_t slot = 0; slot < slots; ++slot) {
                const int left = 16 - bits * static_cast<int>(slot + 1);
                store(unpacked + first + slot * bytes + i, packed << left >> (16 - bits));
            }
        }
    }
}

template <int bits>
inline void unpack(const uint8_t* codes, size_t block, size_t N, int16_t* unpacked) {
    const size_t bytes = block * bits / 8;
    if (bytes >= kShorts) return unpack_blocks<bits, kShorts>(codes, block, N, unpacked);
    if constexpr (kShorts > 16) {
        if (bytes == 16) return unpack_blocks<bits, 16>(codes, block, N, unpacked);
    }
    unpack_blocks<bits, 8>(codes, block, N, unpacked);
}

// Products of neighbours, added in pairs.
inline Ints multiply_add(Shorts a, Shorts b) {
#if defined(__AVX512F__)
    return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    Ints sums;
    for (size_t i = 0; i < kLanes; ++i) sums[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return sums;
#endif
}

// Of each 16 bytes of four registers, the sums: a's, b's, c's, d's.
inline Ints sums_of_quarters(Ints a, Ints b, Ints c, Ints d) {
#if defined(__AVX512F__)
#define FGRPO_UNPACK(half, width, x, y) (Ints) _mm512_unpack##half##_epi##width((__m512i)(x), (__m512i)(y))
#elif defined(__AVX2__)
#define FGRPO_UNPACK(half, width, x, y) (Ints) _mm256_unpack##half##_epi##width((__m256i)(x), (__m256i)(y))
#elif defined(__SSE2__)
#define FGRPO_UNPACK(half, width, x, y) (Ints) _mm_unpack##half##_epi##width((__m128i)(x), (__m128i)(y))
#endif
#if defined(FGRPO_UNPACK)
    const Ints ab = FGRPO_UNPACK(lo, 32, a, b) + FGRPO_UNPACK(hi, 32, a, b);
    const Ints cd = FGRPO_UNPACK(lo, 32, c, d) + FGRPO_UNPACK(hi, 32, c, d);
    return FGRPO_UNPACK(lo, 64, ab, cd) + FGRPO_UNPACK(hi, 64, ab, cd);
#undef FGRPO_UNPACK
#else
    return Ints{a[0] + a[1] + a[2] + a[3], b[0] + b[1] + b[2] + b[3], c[0] + c[1] + c[2] + c[3],
                d[0] + d[1] + d[2] + d[3]};
#endif
}

// Four integers: of each of four registers, the sum.
inline Vector<int, 4> sums_of_four(const Ints (&products)[4]) {
    const Ints quarters = sums_of_quarters(products[0], products[1], products[2], products[3]);
#if defined(__AVX512F__)
    const __m256i halves = _mm256_add_epi32(_mm512_castsi512_si256((__m512i)quarters),
                                            _mm512_extracti64x4_epi64((__m512i)quarters, 1));
    return (Vector<int, 4>)_mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
#elif defined(__AVX2__)
    return (Vector<int, 4>)_mm_add_epi32(_mm256_castsi256_si128((__m256i)quarters),
                                         _mm256_extracti128_si256((__m256i)quarters, 1));
#else
    return quarters;
#endif
}

}  // namespace
}  // namespace fgrpo
