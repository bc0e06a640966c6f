// Compiled once per instruction set; the rules of kernels.cpp hold here.
#include "update_kernels.h"

#include "vectors.h"

namespace fgrpo {
namespace {

// A word of mask for kWord values: the lowest of the kMaskBits bits of a value that differs is set.
#if defined(__AVX512F__)
constexpr size_t kMaskBits = 1;
inline uint64_t differing(const uint16_t* a, const uint16_t* b) {
    const uint64_t low = _mm512_cmpneq_epi16_mask(load<__m512i>(a), load<__m512i>(b));
    const uint64_t high = _mm512_cmpneq_epi16_mask(load<__m512i>(a + 32), load<__m512i>(b + 32));
    return low | high << 32;
}
#elif defined(__AVX2__)
constexpr size_t kMaskBits = 2;
inline uint64_t differing(const uint16_t* a, const uint16_t* b) {
    uint64_t equal = 0;
    for (int i = 0; i < 2; ++i) {
        const __m256i lanes = _mm256_cmpeq_epi16(load<__m256i>(a + 16 * i), load<__m256i>(b + 16 * i));
        equal |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(lanes))) << 32 * i;
    }
    return ~equal & 0x5555555555555555u;
}
#elif defined(__SSE2__)
constexpr size_t kMaskBits = 2;
inline uint64_t differing(const uint16_t* a, const uint16_t* b) {
    uint64_t equal = 0;
    for (int i = 0; i < 4; ++i) {
        const __m128i lanes = _mm_cmpeq_epi16(load<__m128i>(a + 8 * i), load<__m128i>(b + 8 * i));
        equal |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(lanes))) << 16 * i;
    }
    return ~equal & 0x5555555555555555u;
}
#else
constexpr size_t kMaskBits = 16;
inline uint64_t differing(const uint16_t* a, const uint16_t* b) {
    const uint64_t different = load<uint64_t>(a) ^ load<uint64_t>(b), low = 0x7fff7fff7fff7fff;
    // The highest bit of each 16 is set where any of them is, then moved to the low end.
    return ((((different & low) + low) | different) & ~low) >> 15;
}
#endif
constexpr size_t kWord = 64 / kMaskBits;
constexpr size_t kWords = 4;                   // that are skipped together where nothing differs
constexpr size_t kGuessed = 4;                 // positions written for a word, right or not
constexpr uint64_t kStop = uint64_t{1} << 63;  // so that a word without bits has a lowest one

size_t changes(const uint16_t* updated, const uint16_t* base, size_t N, uint16_t* positions) {
    size_t count = 0, first = 0;
    for (; first + kWords * kWord <= N; first += kWords * kWord) {
        uint64_t words[kWords], any = 0;
        for (size_t w = 0; w < kWords; ++w) {
            words[w] = differing(updated + first + w * kWord, base + first + w * kWord);
            any |= words[w];
        }
        if (any == 0) continue;
        for (size_t w = 0; w < kWords; ++w) {
            uint64_t word = words[w];
            const size_t found = static_cast<size_t>(__builtin_popcountll(word)), start = first + w * kWord;
            // A few positions without a branch, then the rest: how often a loop runs cannot be foreseen.
#pragma GCC unroll 4
            for (size_t i = 0; i < kGuessed; ++i, word &= word - 1) {
                const size_t bit = static_cast<size_t>(__builtin_ctzll(word | kStop));
                positions[count + i] = static_cast<uint16_t>(start + bit / kMaskBits);
            }
            for (size_t i = kGuessed; i < found; ++i, word &= word - 1) {
                const size_t bit = static_cast<size_t>(__builtin_ctzll(word));
                positions[count + i] = static_cast<uint16_t>(start + bit / kMaskBits);
            }
            count += found;
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
constinit const UpdateKernels FGRPO_SIMD = {changes, hash};
}  // namespace update

}  // namespace fgrpo
