// Compiled once per instruction set; the rules of kernels.cpp hold here.
#include "robust_kernels.h"

#include "vectors.h"

namespace fgrpo {
namespace {

using Floats = Vector<float, kLanes>;
using Ints = Vector<int, kLanes>;

// A float's bits as an integer that compares as the float does, with -0 below 0 and NaN at both ends: a total
// order, so the result does not depend on where a value came from. Its own inverse.
inline Ints ordered(Ints bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

constexpr int kLargest = 0x7f7fffff, kSmallest = ~kLargest;  // float32's, ordered

bool trimmed_mean(const float* values, size_t stride, size_t K, size_t N, const Comparator* network,
                  size_t comparators, size_t trim, float* out) {
    alignas(64) int rows[64][kSortedTogether];
    const float left = static_cast<float>(static_cast<int>(K - 2 * trim));
    Ints strange = {};
    for (size_t first = 0; first < N; first += kSortedTogether) {
        for (size_t k = 0; k < K; ++k) {
            const float* row = values + k * stride + first;
#pragma GCC unroll 16
            for (size_t i = 0; i < kSortedTogether; i += kLanes) {
                store(rows[k] + i, ordered(load<Ints>(row + i)));
            }
        }
        for (size_t c = 0; c < comparators; ++c) {
            int *low = rows[network[c].low], *high = rows[network[c].high];
#pragma GCC unroll 16
            for (size_t i = 0; i < kSortedTogether; i += kLanes) {
                const Ints a = load<Ints>(low + i), b = load<Ints>(high + i);
                store(low + i, a < b ? a : b);
                store(high + i, a < b ? b : a);
            }
        }
        for (size_t i = 0; i < kSortedTogether; i += kLanes) {
            strange |= (load<Ints>(rows[0] + i) < kSmallest) | (load<Ints>(rows[K - 1] + i) > kLargest);
            Floats sum = (Floats)ordered(load<Ints>(rows[trim] + i));
            for (size_t k = trim + 1; k < K - trim; ++k) sum += (Floats)ordered(load<Ints>(rows[k] + i));
            store(out + first + i, sum / left);
        }
    }
    int any = 0;
    for (size_t i = 0; i < kLanes; ++i) any |= strange[i];
    return any == 0;
}

}  // namespace

namespace robust {
extern const RobustKernels FGRPO_SIMD;
constinit const RobustKernels FGRPO_SIMD = {trimmed_mean};
}  // namespace robust

}  // namespace fgrpo
