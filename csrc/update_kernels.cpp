// Compiled once per instruction set; the rules of kernels.cpp hold here.
#include "update_kernels.h"

#include "vectors.h"

namespace fgrpo {
namespace {

// Values compared at once, and the bits that one of them has in the mask.
#if defined(__AVX512F__)
constexpr size_t kCompared = 32, kMaskBits = 1;
inline uint64_t differing(const uint16_t* a, const uint16_t* b) {
    return _mm512_cmpneq_epi16_mask(load<__m512i>(a), load<__m512i>(b));
}
#elif defined(__AVX2__)
constexpr size_t kCompared = 16, kMaskBits = 2;
inline uint64_t differing(const uint16_t* a, const uint16_t* b) {
    const __m256i equal = _mm256_cmpeq_epi16(load<__m256i>(a), load<__m256i>(b));
    return ~static_cast<uint32_t>(_mm256_movemask_epi8(equal)) & 0x55555555u;
}
#elif defined(__SSE2__)
constexpr size_t kCompared = 8, kMaskBits = 2;
inline uint64_t differing(const uint16_t* a, const uint16_t* b) {
    const __m128i equal = _mm_cmpeq_epi16(load<__m128i>(a), load<__m128i>(b));
    return ~static_cast<uint32_t>(_mm_movemask_epi8(equal)) & 0x5555u;
}
#else
constexpr size_t kCompared = 4, kMaskBits = 16;
inline uint64_t differing(const uint16_t* a, const uint16_t* b) {
    const uint64_t different = load<uint64_t>(a) ^ load<uint64_t>(b), low = 0x7fff7fff7fff7fff;
    // The highest bit of each 16 is set where any of them is, then moved to the low end.
    return ((((different & low) + low) | different) & ~low) >> 15;
}
#endif

size_t changes(const uint16_t* updated, const uint16_t* base, size_t N, uint16_t* positions) {
    size_t count = 0, first = 0;
    for (; first + kCompared <= N; first += kCompared) {
        for (uint64_t mask = differing(updated + first, base + first); mask != 0; mask &= mask - 1) {
            const size_t lane = static_cast<size_t>(__builtin_ctzll(mask)) / kMaskBits;
            positions[count++] = static_cast<uint16_t>(first + lane);
        }
    }
    for (; first < N; ++first) {
        if (updated[first] != base[first]) positions[count++] = static_cast<uint16_t>(first);
    }
    return count;
}

constexpr size_t kStreams = 32;           // of 64-bit words, side by side
constexpr size_t kStride = 4 * kStreams;  // values
constexpr uint64_t kMultiplier = 0xfffeb81b;
constexpr size_t kHashLanes = kLanes / 2;
using Longs = Vector<uint64_t, kHashLanes>;

// lower half * factor, for a factor below 2^32.
inline Longs multiply_lower_half(Longs a, uint64_t factor) {
    const Longs factors = Longs{} + factor;
#if defined(__AVX512F__)
    return (Longs)_mm512_mul_epu32((__m512i)a, (__m512i)factors);
#elif defined(__AVX2__)
    return (Longs)_mm256_mul_epu32((__m256i)a, (__m256i)factors);
#elif defined(__SSE2__)
    return (Longs)_mm_mul_epu32((__m128i)a, (__m128i)factors);
#else
    return (a & 0xffffffffu) * factors;
#endif
}

// The finaliser of splitmix64 (Steele, Lea and Flood 2014).
inline uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// Each stream takes a word by xor and then makes a step of a multiply-with-carry generator, which is one to one
// but for a few states: a change confined to one word of a stream always shows.
inline void absorb(const uint16_t* values, Longs* state) {
#pragma GCC unroll 16
    for (size_t i = 0; i < kStreams / kHashLanes; ++i) {
        state[i] ^= load<Longs>(values + 4 * kHashLanes * i);
        state[i] = multiply_lower_half(state[i], kMultiplier) + (state[i] >> 32);
    }
}

uint64_t hash(const uint16_t* values, size_t N) {
    Longs state[kStreams / kHashLanes];
    for (size_t i = 0; i < kStreams; ++i) {
        state[i / kHashLanes][i % kHashLanes] = mixed(0x9e3779b97f4a7c15u * (i + 1));
    }
    size_t first = 0;
    for (; first + kStride <= N; first += kStride) absorb(values + first, state);
    if (first < N) {
        uint16_t rest[kStride] = {};
        __builtin_memcpy(rest, values + first, (N - first) * sizeof(uint16_t));
        absorb(rest, state);
    }
    uint64_t hash = N;
    for (size_t i = 0; i < kStreams; ++i) hash = mixed(hash ^ state[i / kHashLanes][i % kHashLanes]) + i;
    return hash;
}

}  // namespace

namespace update {
extern const UpdateKernels FGRPO_SIMD;
constinit const UpdateKernels FGRPO_SIMD = {FGRPO_SIMD_NAME, changes, hash};
}  // namespace update

}  // namespace fgrpo
