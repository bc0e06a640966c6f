// The inner loops of softmax.cpp, compiled once per instruction set like those of kernels.h.
#pragma once

#include <cstddef>

namespace fgrpo {

// y_j = (row[j] - peak) * scale - shift for j < N.
struct Exponents {
    float peak, scale, shift;
};

// Tables are indexed by LogitType's value.
struct SoftmaxKernels {
    // The largest of N values; NaN may pass unseen.
    float (*peak[2])(const void* row, std::size_t N);

    // sum += exp(y_j) and dot += exp(y_j) * y_j. Sixteen partial sums, whatever the width.
    void (*sums[2])(const void* row, std::size_t N, const Exponents& y, double* sum, double* dot);

    // grad[j] = exp(y_j) * (factor + log_factor * y_j); `grad` may be the row.
    void (*gradient[2])(const void* row, std::size_t N, const Exponents& y, float factor, float log_factor,
                        void* grad);
};

}  // namespace fgrpo
