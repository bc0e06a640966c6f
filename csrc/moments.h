// For kernels.cpp alone (see there): what the server learns of each client beside the sum.
#pragma once

#include "accumulate.h"
#include "vectors.h"

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

// Blocks whose sums are left in lanes, to be added across all at once, which is faster than one by one.
inline constexpr size_t kWaiting = 8;

// Of sums in lanes, those of every fourth lane: halves are added until four are left.
template <typename Floats>
inline Vector<float, 4> every_fourth(const Floats& sums) {
    if constexpr (sizeof(Floats) > sizeof(Vector<float, 4>)) {
        Vector<float, sizeof(Floats) / sizeof(float) / 2> halves[2];
        __builtin_memcpy(halves, &sums, sizeof(sums));
        halves[0] += halves[1];
        return every_fourth(halves[0]);
    } else {
        return sums;
    }
}

// total += factors[i] * sums[i] for i < count; products of float32 and 16 bits are exact.
template <typename Floats>
inline void add_scaled(const Floats* sums, const double* factors, size_t count, Vector<double, 4>& total) {
    for (size_t i = 0; i < count; ++i) {
        const Vector<float, 4> four = every_fourth(sums[i]);
#if defined(__AVX2__)
        // GCC 12 converts the halves one by one.
        const __m256d wide = _mm256_cvtps_pd((__m128)four), factor = _mm256_set1_pd(factors[i]);
        total = (Vector<double, 4>)_mm256_fmadd_pd(wide, factor, (__m256d)total);
#else
        total += __builtin_convertvector(four, Vector<double, 4>) * factors[i];
#endif
    }
}

// Halves of the parts are added until one is left.
template <typename Floats, size_t parts>
inline Floats sum_of_parts(Floats (&sums)[parts]) {
    for (size_t half = parts / 2; half > 0; half /= 2) {
        for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
}

inline double total(const Vector<double, 4>& sums) { return (sums[0] + sums[2]) + (sums[1] + sums[3]); }

// Of a tile's blocks, the scales and their squares.
struct Factors {
    double scales[kTileBlocks], squares[kTileBlocks];
};

template <int bits, size_t block>
void add_code_moments(const uint8_t* codes, const Factors& factors, size_t N, const float* mean,
                      double* squared_norm, double* dot) {
    using G = Group<bits, block>;
    using Floats = typename G::Floats;
    // Sixteen sums, or eight where a block has but eight bytes, whatever the width.
    constexpr size_t bytes = block / G::slots, parts = (bytes < 16 ? bytes : 16) / G::lanes;
    const size_t blocks = N / block;
    Vector<double, 4> squares = {}, products = {};
    for (size_t first = 0; first < blocks; first += kWaiting) {
        const size_t count = blocks - first < kWaiting ? blocks - first : kWaiting;
        Floats square_sums[kWaiting], product_sums[kWaiting];
        for (size_t b = 0; b < count; ++b, codes += bytes, mean += block) {
            Floats square[parts] = {}, product[parts] = {};
#pragma GCC unroll 16
            for (size_t i = 0; i < bytes; i += G::lanes) {
                const auto packed = load_bytes<G::lanes>(codes + i);
                const size_t part = i / G::lanes % parts;
#pragma GCC unroll 4
                for (size_t slot = 0; slot < G::slots; ++slot) {
                    const auto code = codes_in<bits, G::lanes>(packed, static_cast<int>(slot));
                    square[part] = fused_multiply_add(code, code, square[part]);
                    product[part] =
                        fused_multiply_add(code, load<Floats>(mean + slot * bytes + i), product[part]);
                }
            }
            square_sums[b] = sum_of_parts(square);
            product_sums[b] = sum_of_parts(product);
        }
        add_scaled(square_sums, factors.squares + first, count, squares);
        add_scaled(product_sums, factors.scales + first, count, products);
    }
    *squared_norm += total(squares);
    *dot += total(products);
}

template <int bits>
uint32_t code_moments(const Term& term, size_t block, size_t N, const float* mean, double* squared_norm,
                      double* dot) {
    Factors factors;
    uint32_t largest_scale = 0;
    for (size_t b = 0; b < N / block; ++b) {
        factors.scales[b] = widen(term.scales[b]);
        factors.squares[b] = factors.scales[b] * factors.scales[b];
    }
    for (size_t b = 0; b < N / block; ++b) {
        const uint32_t magnitude = static_cast<uint32_t>(term.scales[b]) & 0x7fffu;
        largest_scale = magnitude > largest_scale ? magnitude : largest_scale;
    }
    switch (block) {
        case 32:
            add_code_moments<bits, 32>(term.codes, factors, N, mean, squared_norm, dot);
            break;
        case 64:
            add_code_moments<bits, 64>(term.codes, factors, N, mean, squared_norm, dot);
            break;
        case 128:
            add_code_moments<bits, 128>(term.codes, factors, N, mean, squared_norm, dot);
            break;
        case 256:
            add_code_moments<bits, 256>(term.codes, factors, N, mean, squared_norm, dot);
            break;
        case 512:
            add_code_moments<bits, 512>(term.codes, factors, N, mean, squared_norm, dot);
            break;
        default:
            add_code_moments<bits, kLargestBlock>(term.codes, factors, N, mean, squared_norm, dot);
    }
    return largest_scale;
}

}  // namespace
}  // namespace fgrpo
