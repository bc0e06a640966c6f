// For kernels.cpp alone (see there): vectors of the width that its instruction set has.
#pragma once

#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fgrpo {
namespace {

using std::int16_t;
using std::int8_t;
using std::size_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;
using std::uintptr_t;

inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline float widen(float value) { return value; }
inline float widen(bfloat16 value) { return float_of(static_cast<uint32_t>(value) << 16); }

template <int bits>
inline constexpr int kLargestCode = (1 << (bits - 1)) - 1;

// Vectors of GCC and Clang: each operator works on every lane. kLanes values fill one register.
#if defined(__AVX512F__)
inline constexpr size_t kLanes = 16;
#elif defined(__AVX2__)
inline constexpr size_t kLanes = 8;
#else
inline constexpr size_t kLanes = 4;
#endif

template <typename T, size_t lanes>
using Vector [[gnu::vector_size(sizeof(T) * lanes)]] = T;

template <typename V>
inline V load(const void* from) {
    V vector;
    __builtin_memcpy(&vector, from, sizeof(V));
    return vector;
}

template <typename V>
inline void store(void* to, V vector) {
    __builtin_memcpy(to, &vector, sizeof(V));
}

// Bytes as integers with their sign, and integers' lowest bytes. GCC makes scalar code of the loops.
template <size_t lanes>
inline Vector<int, lanes> load_bytes(const uint8_t* from) {
#if defined(__AVX512F__)
    if constexpr (lanes == 16)
        return (Vector<int, 16>)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#endif
#if defined(__AVX2__)
    if constexpr (lanes == 8)
        return (Vector<int, 8>)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#endif
    Vector<int, lanes> wide;
    for (size_t i = 0; i < lanes; ++i) wide[i] = static_cast<int8_t>(from[i]);
    return wide;
}

template <size_t lanes>
inline void store_bytes(uint8_t* to, Vector<int, lanes> wide) {
#if defined(__AVX512F__)
    if constexpr (lanes == 16) return store(to, _mm512_cvtepi32_epi8((__m512i)wide));
#endif
#if defined(__AVX2__)
    if constexpr (lanes == 8) {
        // The low byte of each integer to the low end of each half, then the two halves side by side.
        const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                             -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
        const __m256i bytes = _mm256_shuffle_epi8((__m256i)wide, low);
        const __m128i joined =
            _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
        return _mm_storel_epi64((__m128i*)to, joined);
    }
#endif
    for (size_t i = 0; i < lanes; ++i) to[i] = static_cast<uint8_t>(wide[i]);
}

// The same for four vectors of integers from 0 to 255, or, if `sign`, from -128 to 127, one after the other.
template <size_t lanes, bool sign>
inline void store_bytes(uint8_t* to, const Vector<int, lanes> (&wide)[4]) {
#if defined(__AVX2__)
    if constexpr (lanes == 8) {
        const __m256i low = _mm256_packs_epi32((__m256i)wide[0], (__m256i)wide[1]);
        const __m256i high = _mm256_packs_epi32((__m256i)wide[2], (__m256i)wide[3]);
        const __m256i bytes = sign ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high);
        // Each half of a register holds four bytes of each vector.
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        return store(to, _mm256_permutevar8x32_epi32(bytes, order));
    }
#endif
    for (size_t i = 0; i < 4; ++i) store_bytes<lanes>(to + i * lanes, wide[i]);
}

// The nearest integers, ties to even, of numbers below 2^22 in magnitude.
template <size_t lanes>
inline Vector<int, lanes> round_to_nearest(Vector<float, lanes> values) {
#if defined(__AVX512F__)
    if constexpr (lanes == 16) return (Vector<int, 16>)_mm512_cvtps_epi32((__m512)values);
#endif
#if defined(__AVX2__)
    if constexpr (lanes == 8) return (Vector<int, 8>)_mm256_cvtps_epi32((__m256)values);
#endif
    // Added to such a number, 1.5 * 2^23 leaves its nearest integer in the low bits.
    return (Vector<int, lanes>)(values + 0x1.8p23f) - 0x4b400000;
}

// The bits of a float32's magnitude: in the order of magnitudes, with infinity and NaN above all numbers.
using Magnitudes = Vector<int, kLanes>;
inline Magnitudes magnitudes(Vector<float, kLanes> values) { return (Magnitudes)values & 0x7fffffff; }
inline Magnitudes larger(Magnitudes a, Magnitudes b) { return a > b ? a : b; }

inline uint32_t largest(Magnitudes values) {
    using Four = Vector<int, 4>;
    Four parts[kLanes / 4];
    __builtin_memcpy(parts, &values, sizeof(values));
    Four most = parts[0];
    for (const Four part : parts) most = most > part ? most : part;
#if defined(__SSE2__)
    const auto other = (Four)_mm_shuffle_epi32((__m128i)most, 0b01001110);
    most = most > other ? most : other;
#else
    for (size_t i = 0; i < 2; ++i) most[i] = most[i] > most[i + 2] ? most[i] : most[i + 2];
#endif
    return static_cast<uint32_t>(most[0] > most[1] ? most[0] : most[1]);
}

// The vectors that codes of `bits` bits are read and written with: `lanes` bytes at a time, which hold as
// many values for each slot. A block of int2 may have no more than 8 bytes.
template <int bits, size_t block = kSmallestBlock>
struct Group {
    static constexpr size_t slots = 8 / bits;  // codes in a byte
    static constexpr size_t bytes = block / slots;
    static constexpr size_t lanes = kLanes < bytes ? kLanes : bytes;
    using Floats = Vector<float, lanes>;
    using Ints = Vector<int, lanes>;
};

// float64, half as many to a register.
inline constexpr size_t kWide = kLanes / 2;
using Doubles = Vector<double, kWide>;

inline Doubles widen(Vector<float, kWide> values) {
#if defined(__AVX512F__)
    return (Doubles)_mm512_cvtps_pd((__m256)values);  // of the plain form GCC 12 makes two conversions
#else
    return __builtin_convertvector(values, Doubles);
#endif
}

// a * b + sum, where the product is exact, so that fusing it with the sum changes nothing.
inline Doubles add_exact_product(Doubles a, Doubles b, Doubles sum) {
#if defined(__AVX512F__)
    return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__FMA__)
    return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#else
    return sum + a * b;
#endif
}

}  // namespace
}  // namespace fgrpo
