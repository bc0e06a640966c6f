// For kernels.cpp alone (see there): what the server learns of each client beside the sum.
#pragma once

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

}  // namespace
}  // namespace fgrpo
