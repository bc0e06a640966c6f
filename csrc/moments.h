// For kernels.cpp alone (see there): what the server learns of each client beside the sum.
#pragma once

#include "accumulate.h"

namespace fgrpo {
namespace {

// Sums of every sixteenth value, whatever the width.
inline constexpr size_t kMoments = 16, kMomentParts = kMoments / kWide;

// Added in pairs.
inline double total(const Doubles (&parts)[kMomentParts]) {
    double sums[kMoments];
    __builtin_memcpy(sums, parts, sizeof(parts));
    for (size_t half = kMoments / 2; half > 0; half /= 2) {
        for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
}

void moments(const float* values, const double* mean, size_t N, double* squared_norm, double* dot) {
    Doubles squares[kMomentParts] = {}, products[kMomentParts] = {};
    for (size_t start = 0; start < N; start += kMoments) {
#pragma GCC unroll 8
        for (size_t part = 0; part < kMomentParts; ++part) {
            const size_t at = start + part * kWide;
            const Doubles value = widen(load<Vector<float, kWide>>(values + at));
            squares[part] = add_exact_product(value, value, squares[part]);
            products[part] = add_exact_product(value, load<Doubles>(mean + at), products[part]);
        }
    }
    *squared_norm += total(squares);
    *dot += total(products);
}

// The sum of integers below 2^24 in magnitude, as is each sum on the way.
template <size_t lanes>
inline float sum_of_integers(Vector<float, lanes> values) {
    using Few = Vector<float, 4>;
    Few parts[lanes / 4];
    __builtin_memcpy(parts, &values, sizeof(values));
    for (size_t i = 1; i < lanes / 4; ++i) parts[0] += parts[i];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

template <typename Floats, size_t count>
inline void split(Floats values, Vector<float, kWide> (&parts)[count]) {
#if defined(__AVX512F__)
    if constexpr (count == 2) {
        parts[0] = (Vector<float, kWide>)_mm512_castps512_ps256(values);
        parts[1] = (Vector<float, kWide>)_mm512_extractf32x8_ps(values, 1);
        return;
    }
#elif defined(__AVX2__)
    if constexpr (count == 2) {
        parts[0] = (Vector<float, kWide>)_mm256_castps256_ps128(values);
        parts[1] = (Vector<float, kWide>)_mm256_extractf128_ps(values, 1);
        return;
    }
#endif
    __builtin_memcpy(parts, &values, sizeof(values));
}

template <int bits, size_t block>
void moments_of_blocks(const Term& term, size_t N, const double* mean, double* squared_norm, double* dot) {
    using G = Group<bits, block>;
    constexpr size_t bytes = block / G::slots, step = bytes < kMoments ? bytes : kMoments;
    Doubles products[kMomentParts] = {};
    double squares = 0.0;
    const uint8_t* codes = term.codes;
    for (size_t b = 0; b < N / block; ++b, codes += bytes, mean += block) {
        Doubles block_products[kMomentParts] = {};
        typename G::Floats block_squares = {};
#pragma GCC unroll 4
        for (size_t slot = 0; slot < G::slots; ++slot) {
            for (size_t i = 0; i < bytes; i += step) {
#pragma GCC unroll 4
                for (size_t j = 0; j < step; j += G::lanes) {
                    const auto packed = load_bytes<G::lanes>(codes + i + j);
                    const auto code = codes_in<bits, G::lanes>(packed, static_cast<int>(slot));
                    block_squares = fused_multiply_add(code, code, block_squares);
                    Vector<float, kWide> halves[G::lanes / kWide];
                    split(code, halves);
#pragma GCC unroll 2
                    for (size_t half = 0; half < G::lanes / kWide; ++half) {
                        Doubles& sum = block_products[(slot * bytes % kMoments + j) / kWide + half];
                        const auto means = load<Doubles>(mean + slot * bytes + i + j + half * kWide);
                        sum = add_exact_product(widen(halves[half]), means, sum);
                    }
                }
            }
        }
        const double scale = widen(term.scales[b]);
#pragma GCC unroll 8
        for (size_t part = 0; part < kMomentParts; ++part) products[part] += block_products[part] * scale;
        squares += static_cast<double>(sum_of_integers<G::lanes>(block_squares)) * (scale * scale);
    }
    *squared_norm += squares;
    *dot += total(products);
}

template <int bits>
void moments_of_codes(const Term& term, size_t block, size_t N, const double* mean, double* squared_norm,
                      double* dot) {
    switch (block) {
        case 32:
            return moments_of_blocks<bits, 32>(term, N, mean, squared_norm, dot);
        case 64:
            return moments_of_blocks<bits, 64>(term, N, mean, squared_norm, dot);
        case 128:
            return moments_of_blocks<bits, 128>(term, N, mean, squared_norm, dot);
        case 256:
            return moments_of_blocks<bits, 256>(term, N, mean, squared_norm, dot);
        case 512:
            return moments_of_blocks<bits, 512>(term, N, mean, squared_norm, dot);
        default:
            return moments_of_blocks<bits, kLargestBlock>(term, N, mean, squared_norm, dot);
    }
}

}  // namespace
}  // namespace fgrpo
