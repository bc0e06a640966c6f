// For kernels.cpp alone (see there): a block's scale.
#pragma once

#include "vectors.h"

namespace fgrpo {
namespace {

// The smallest normal number: below it a scale would lose precision.
inline constexpr float kSmallestScale = 0x1p-126f;

template <int bits>
inline bfloat16 scale_by_absmax(uint32_t peak) {
    const float scale = float_of(peak) / static_cast<float>(kLargestCode<bits>);
    // Rounded up, so that no code passes the largest.
    return static_cast<bfloat16>(scale < kSmallestScale ? 0 : (bits_of(scale) + 0xffffu) >> 16);
}

// What a block's largest value may become in units of its scale, best guesses first. docs/codec.md says how
// these were found.
inline constexpr size_t kCandidates = 6;
template <int bits>
inline constexpr float kPeakCodes[kCandidates] = {};
template <>
inline constexpr float kPeakCodes<8>[kCandidates] = {128, 127, 126, 125, 124, 123};
template <>
inline constexpr float kPeakCodes<4>[kCandidates] = {8, 8.5f, 9, 7.5f, 10, 11};
template <>
inline constexpr float kPeakCodes<2>[kCandidates] = {2.5f, 3, 2, 3.5f, 4.5f, 6};

template <int bits>
constexpr float largest_peak_code() {
    float largest = 0;
    for (const float code : kPeakCodes<bits>) largest = code > largest ? code : largest;
    return largest;
}

// Sixteen partial sums, added in pairs: the same order for every width of vectors.
inline constexpr size_t kParts = 16 / kLanes;
inline float total(const Vector<float, kLanes> (&parts)[kParts]) {
    using Four = Vector<float, 4>;
    Four sums[4];
    __builtin_memcpy(sums, parts, sizeof(sums));
    const Four four = (sums[0] + sums[2]) + (sums[1] + sums[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

inline Vector<float, kLanes> between(Vector<float, kLanes> low, Vector<float, kLanes> high,
                                     Vector<float, kLanes> value) {
#if defined(__AVX512F__)
    return _mm512_max_ps(low, _mm512_min_ps(high, value));
#elif defined(__AVX2__)
    return _mm256_max_ps(low, _mm256_min_ps(high, value));
#elif defined(__SSE2__)
    return _mm_max_ps(low, _mm_min_ps(high, value));
#else
    value = value > high ? high : value;
    return value < low ? low : value;
#endif
}

inline bool any_equals(const float* values, size_t N, float wanted) {
    using Floats = Vector<float, kLanes>;
    Vector<int, kLanes> found = {};
    for (size_t i = 0; i < N; i += kLanes) found |= load<Floats>(values + i) == wanted - Floats{};
    int any = 0;
    for (size_t i = 0; i < kLanes; ++i) any |= found[i];
    return any != 0;
}

// Squared errors are summed in units of the first candidate, so they neither overflow nor vanish.
template <int bits>
bfloat16 scale_by_mse(const float* delta, uint32_t peak, size_t block) {
    using Floats = Vector<float, kLanes>;
    const float magnitude = float_of(peak);
    constexpr float most = largest_peak_code<bits>();  // makes the smallest of the scales
    if (magnitude / most < kSmallestScale) return bfloat16{0};
    // The largest value goes to the lowest code, which lies one further from 0 than the highest.
    const uint32_t sign = any_equals(delta, block, magnitude) ? 0x8000u : 0;

    bfloat16 scales[kCandidates];
    float inverses[kCandidates], units[kCandidates];
    for (size_t j = 0; j < kCandidates; ++j) {
        const uint32_t bits_j = bits_of(magnitude / kPeakCodes<bits>[j]);
        scales[j] = static_cast<bfloat16>(sign | (bits_j + 0x7fffu + (bits_j >> 16 & 1u)) >> 16);
        inverses[j] = 1.0f / widen(scales[j]);
        units[j] = widen(scales[j]) * inverses[0];
    }
    const Floats highest = Floats{} + static_cast<float>(kLargestCode<bits>), lowest = -highest - 1.0f;
    float errors[kCandidates];
    for (size_t j = 0; j < kCandidates; ++j) {
        // One candidate at a time: what its loop needs fits in the registers.
        Floats sums[kParts] = {};
        for (size_t start = 0; start < block; start += 16) {
#pragma GCC unroll 4
            for (size_t part = 0; part < kParts; ++part) {
                const Floats value = load<Floats>(delta + start + part * kLanes);
                const Floats nearest = (value * inverses[j] + 0x1.8p23f) - 0x1.8p23f;
                const Floats code = between(lowest, highest, nearest);
                const Floats error = value * inverses[0] - code * units[j];
                sums[part] += error * error;
            }
        }
        errors[j] = total(sums);
    }
    size_t best = 0;
    float least = errors[0];
    for (size_t j = 1; j < kCandidates; ++j) {
        if (errors[j] < least) {
            least = errors[j];
            best = j;
        }
    }
    // Where no value takes the lowest code the sign says nothing, and check() refuses it.
    const float peak_code = (magnitude * inverses[best] + 0x1.8p23f) - 0x1.8p23f;
    const bool says_nothing = sign != 0 && peak_code > -static_cast<float>(kLargestCode<bits>) - 1.0f;
    return says_nothing ? static_cast<bfloat16>(static_cast<uint32_t>(scales[best]) & 0x7fffu) : scales[best];
}

}  // namespace
}  // namespace fgrpo
