// For gram_kernels.cpp alone: products of codes with a mean that is cut into integers, so that they are exact.
#pragma once

#include "integers.h"

namespace fgrpo {
namespace {

// A power of two takes the largest value to below 2^30. The integers below the scaled values are the upper two
// digits, the next 15 bits of their fractions the third.
bool split_mean(const float* values, size_t N, MeanDigits* mean) {
    using Floats = Vector<float, kLanes>;
    Magnitudes most = {};
    for (size_t i = 0; i < N; i += kLanes) most = larger(most, magnitudes(load<Floats>(values + i)));
    const uint32_t peak = largest(most) >> 23;  // the exponent, as float32 has it
    if (peak == 255) return false;
    const uint32_t exponent =
        283 - (peak > 29 ? peak : 29);  // at most 254: float32 has no larger power of two
    const float up = float_of(exponent << 23);
    mean->unit = 0x1p-15 / static_cast<double>(up);
    // A value that falls below float32's normal numbers when it is scaled may lose bits as well.
    const float down = static_cast<float>(1.0 / static_cast<double>(up));
    Ints lost = {};
    for (size_t i = 0; i < N; i += kShorts) {
        Ints whole[2], last[2];
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; ++half) {
            const auto value = load<Floats>(values + i + half * kLanes), scaled = value * up;
            whole[half] = __builtin_convertvector(scaled, Ints);
            const auto rest = (scaled - __builtin_convertvector(whole[half], Floats)) * 0x1p15f;
            last[half] = __builtin_convertvector(rest, Ints);
            lost |= (Ints)(scaled * down) ^ (Ints)value;
            lost |= (Ints) __builtin_convertvector(last[half], Floats) ^ (Ints)rest;
        }
        store(mean->digits[0] + i, lower_halves((whole[0] + 0x8000) >> 16, (whole[1] + 0x8000) >> 16));
        store(mean->digits[1] + i, lower_halves(whole[0], whole[1]));
        store(mean->digits[2] + i, lower_halves(last[0], last[1]));
    }
    return largest(lost & 0x7fffffff) == 0;  // of zeros the sign may differ
}

// `codes_at(i)` are those of the values from i on.
template <size_t run, typename Codes>
inline uint32_t add_runs_by_mean(const Codes& codes_at, const bfloat16* scales, size_t block, size_t N,
                                 const MeanDigits& mean, double* sums) {
#if defined(__AVX2__)
    auto totals = load<Four>(sums);
#endif
    uint32_t largest_scale = 0;
    for (size_t first = 0; first < N; first += run) {
        Ints products[4] = {};
#pragma GCC unroll 8
        for (size_t i = first; i < first + run; i += kShorts) {
            const Shorts codes = codes_at(i);
            products[0] += multiply_add(codes, codes);
#pragma GCC unroll 3
            for (size_t digit = 0; digit < 3; ++digit) {
                products[1 + digit] += multiply_add(codes, load<Shorts>(mean.digits[digit] + i));
            }
        }
        const Vector<int, 4> dots = sums_of_four(products);
        const bfloat16 scale_of_run = scales[first / block];
        const uint32_t magnitude = static_cast<uint32_t>(scale_of_run) & 0x7fffu;
        largest_scale = magnitude > largest_scale ? magnitude : largest_scale;
        // Exact but for the additions: at most 30 bits by two scales of 8.
        const double scale = widen(scale_of_run);
#if defined(__AVX2__)
        const auto wide = (Four)_mm256_cvtepi32_pd((__m128i)dots);
        const Four factors = (scale - Four{}) * Four{scale, 1.0, 1.0, 1.0};
        totals = (Four)_mm256_fmadd_pd((__m256d)wide, (__m256d)factors, (__m256d)totals);
#else
        sums[0] += static_cast<double>(dots[0]) * (scale * scale);
        for (size_t digit = 1; digit < 4; ++digit) sums[digit] += static_cast<double>(dots[digit]) * scale;
#endif
    }
#if defined(__AVX2__)
    store(sums, totals);
#endif
    return largest_scale;
}

template <int bits>
uint32_t add_products_with_mean(const uint8_t* codes, const bfloat16* scales, size_t block, size_t N,
                                const MeanDigits& mean, double* sums) {
    alignas(64) int16_t unpacked[kTile];
    if constexpr (bits != 8) unpack<bits>(codes, block, N, unpacked);
    const auto codes_at = [&](size_t i) {
        if constexpr (bits == 8) return load_shorts<kShorts>(codes + i);
        return load<Shorts>(unpacked + i);
    };
    switch (block) {
        case 32:
            return add_runs_by_mean<32>(codes_at, scales, block, N, mean, sums);
        case 64:
            return add_runs_by_mean<64>(codes_at, scales, block, N, mean, sums);
        case 128:
            return add_runs_by_mean<128>(codes_at, scales, block, N, mean, sums);
        default:
            // Of 512 products with a digit, of 2^22 each, the sum would not fit.
            return add_runs_by_mean<256>(codes_at, scales, block, N, mean, sums);
    }
}

}  // namespace
}  // namespace fgrpo
