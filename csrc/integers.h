// For the kernels' sources alone (see kernels.cpp): codes as integers, and sums of their products.
#pragma once

#include "gram_kernels.h"
#include "vectors.h"

namespace fgrpo {
namespace {

inline constexpr size_t kShorts = 2 * kLanes;  // fill one register
using Shorts = Vector<int16_t, kShorts>;
using Ints = Vector<int, kLanes>;

// Bytes as 16-bit integers with their sign.
inline Shorts load_shorts(const int8_t* from) {
#if defined(__AVX512F__)
    return (Shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
    return (Shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
#elif defined(__SSE2__)
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)from);
    return (Shorts)_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
#else
    Shorts wide;
    for (size_t i = 0; i < kShorts; ++i) wide[i] = from[i];
    return wide;
#endif
}

template <int bits, size_t lanes>
inline void unpack_blocks(const uint8_t* codes, size_t block, size_t N, int8_t* unpacked) {
    constexpr size_t slots = 8 / bits;
    constexpr uint8_t mask = (1 << bits) - 1, sign = 1 << (bits - 1);
    const size_t bytes = block / slots;
    for (size_t first = 0; first < N; first += block, codes += bytes) {
        for (size_t i = 0; i < bytes; i += lanes) {
            const auto packed = load<Vector<uint8_t, lanes>>(codes + i);
            __builtin_prefetch(codes + i + kChunk / slots);
#pragma GCC unroll 4
            for (size_t slot = 0; slot < slots; ++slot) {
                const auto code = (packed >> static_cast<uint8_t>(bits * slot)) & mask;
                store(unpacked + first + slot * bytes + i, (code ^ sign) - sign);
            }
        }
    }
}

template <int bits>
inline void unpack(const uint8_t* codes, size_t block, size_t N, int8_t* unpacked) {
    const size_t bytes = block * bits / 8;
    if constexpr (kLanes > 8) {
        if (bytes >= 64) return unpack_blocks<bits, 64>(codes, block, N, unpacked);
    }
    if constexpr (kLanes > 4) {
        if (bytes >= 32) return unpack_blocks<bits, 32>(codes, block, N, unpacked);
    }
    if (bytes >= 16) return unpack_blocks<bits, 16>(codes, block, N, unpacked);
    unpack_blocks<bits, 8>(codes, block, N, unpacked);
}

// Four rows' codes in one: by turns, two of each row. Which two is up to the instruction set, and the same for all rows and
// bits; codes stay among their 32. A block's codes take a multiple of kPackedBytes.
template <int bits>
inline void interleave(const uint8_t* const (&rows)[4], size_t block, size_t N, int16_t* interleaved) {
    constexpr size_t slots = 8 / bits;
    const size_t bytes = (bits == 8 ? N : block) / slots;  // with one slot a block is as good as all of them
#if defined(__AVX2__)
    using Bytes = __m256i;
#define FGRPO_UNPACK(half, width, x, y) _mm256_unpack##half##_epi##width(x, y)
#elif defined(__SSE2__)
    using Bytes = __m128i;
#define FGRPO_UNPACK(half, width, x, y) _mm_unpack##half##_epi##width(x, y)
#endif
#if defined(FGRPO_UNPACK)
    using Wide = Vector<int16_t, sizeof(Bytes) / 2>;
    for (size_t first = 0; first < N; first += slots * bytes) {
        for (size_t i = 0; i < bytes; i += sizeof(Bytes)) {
            Bytes row[4];
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; ++r) {
                const uint8_t* from = rows[r] + first / slots + i;
                row[r] = load<Bytes>(from);
                __builtin_prefetch(from + kChunk / slots, 0, 2);  // the next chunk of a payload
            }
            const Bytes ab[2] = {FGRPO_UNPACK(lo, 32, row[0], row[1]), FGRPO_UNPACK(hi, 32, row[0], row[1])};
            const Bytes cd[2] = {FGRPO_UNPACK(lo, 32, row[2], row[3]), FGRPO_UNPACK(hi, 32, row[2], row[3])};
            const Wide fours[4] = {
                (Wide)FGRPO_UNPACK(lo, 64, ab[0], cd[0]), (Wide)FGRPO_UNPACK(hi, 64, ab[0], cd[0]),
                (Wide)FGRPO_UNPACK(lo, 64, ab[1], cd[1]), (Wide)FGRPO_UNPACK(hi, 64, ab[1], cd[1])};
#pragma GCC unroll 4
            for (size_t slot = 0; slot < slots; ++slot) {
                int16_t* to = interleaved + 4 * (first + slot * bytes + i);
#pragma GCC unroll 4
                for (size_t four = 0; four < 4; ++four, to += sizeof(Bytes)) {
                    // Its sixteen bits hold two bytes: up with the slot of each, and down with its sign.
                    store(to, fours[four] << (16 - bits * (slot + 1)) >> (16 - bits));
                    store(to + sizeof(Bytes) / 2, fours[four] << (8 - bits * (slot + 1)) >> (16 - bits));
                }
            }
        }
    }
#undef FGRPO_UNPACK
#else
    for (size_t i = 0; i < N; ++i) {
        const size_t at = i / (slots * bytes) * bytes + i % bytes, up = 8 - bits * (i / bytes % slots + 1);
        for (size_t r = 0; r < 4; ++r) {
            interleaved[4 * (i & ~size_t{1}) + 2 * r + i % 2] =
                static_cast<int8_t>(rows[r][at] << up) >> (8 - bits);
        }
    }
#endif
}

// Of interleaved rows, in the place of each the one k further on, past the last the first.
template <size_t k>
inline Shorts rotated(Shorts codes) {
#if defined(__SSE2__)
    constexpr int places = 0b11100100 >> 2 * k | (0b11100100 << (8 - 2 * k) & 0xff);
#endif
#if defined(__AVX512F__)
    return (Shorts)_mm512_shuffle_epi32((__m512i)codes, static_cast<_MM_PERM_ENUM>(places));
#elif defined(__AVX2__)
    return (Shorts)_mm256_shuffle_epi32((__m256i)codes, places);
#elif defined(__SSE2__)
    return (Shorts)_mm_shuffle_epi32((__m128i)codes, places);
#else
    Shorts result;
    for (size_t i = 0; i < kShorts; ++i) result[i] = codes[(i + 2 * k) % kShorts];
    return result;
#endif
}

// sums + the products of neighbours, added in pairs.
inline Ints add_products(Ints sums, Shorts a, Shorts b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX512F__)
    return sums + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sums + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return sums + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    for (size_t i = 0; i < kLanes; ++i) sums[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return sums;
#endif
}

// Sixteen integers: of each of four registers, the four sums of every fourth integer.
inline void add_fourths(const Ints (&of)[4], int* sums) {
#if defined(__AVX512F__)
    const auto add_halves = [](Ints x, Ints y) {
        const __m512i low = _mm512_shuffle_i32x4((__m512i)x, (__m512i)y, 0x88);
        return (Ints)_mm512_add_epi32(low, _mm512_shuffle_i32x4((__m512i)x, (__m512i)y, 0xdd));
    };
    store(sums, add_halves(add_halves(of[0], of[1]), add_halves(of[2], of[3])));
#elif defined(__AVX2__)
#pragma GCC unroll 2
    for (size_t i = 0; i < 4; i += 2) {
        const auto x = (__m256i)of[i], y = (__m256i)of[i + 1];
        store(sums + 4 * i,
              _mm256_add_epi32(_mm256_permute2x128_si256(x, y, 0x20), _mm256_permute2x128_si256(x, y, 0x31)));
    }
#else
    for (size_t i = 0; i < 4; ++i) store(sums + 4 * i, of[i]);
#endif
}

inline Doubles widen(const int* from) {
#if defined(__AVX512F__)
    return (Doubles)_mm512_cvtepi32_pd(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
    return (Doubles)_mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i*)from));
#else
    return Doubles{static_cast<double>(from[0]), static_cast<double>(from[1])};
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
