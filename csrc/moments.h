// For kernels.cpp alone (see there): what the server learns of each client beside the sum.
#pragma once

#include "vectors.h"

namespace fgrpo {
namespace {

void moments(const float* values, const float* mean, size_t N, double* squared_norm, double* dot) {
    constexpr size_t lanes = kLanes / 2, parts = 16 / lanes;
    using Doubles = Vector<double, lanes>;
    Doubles squares[parts] = {}, products[parts] = {};
    for (size_t start = 0; start < N; start += 16) {
        for (size_t part = 0; part < parts; ++part) {
            const size_t at = start + part * lanes;
            const auto value = __builtin_convertvector(load<Vector<float, lanes>>(values + at), Doubles);
            const auto other = __builtin_convertvector(load<Vector<float, lanes>>(mean + at), Doubles);
            squares[part] += value * value;
            products[part] += value * other;
        }
    }
    double sums[2][16];
    __builtin_memcpy(sums[0], squares, sizeof(squares));
    __builtin_memcpy(sums[1], products, sizeof(products));
    for (size_t half = 8; half > 0; half /= 2) {
        for (size_t i = 0; i < half; ++i) {
            sums[0][i] += sums[0][i + half];
            sums[1][i] += sums[1][i + half];
        }
    }
    *squared_norm += sums[0][0];
    *dot += sums[1][0];
}

}  // namespace
}  // namespace fgrpo
