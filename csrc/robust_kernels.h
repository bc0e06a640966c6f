// The inner loops of robust.cpp, compiled once per instruction set like those of kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fgrpo {

inline constexpr std::size_t kSortedTogether = 64;  // coordinates that one pass over a network sorts

// After it row `low` holds the smaller of the two values of each coordinate and row `high` the larger.
struct Comparator {
    std::uint8_t low, high;
};

struct RobustKernels {
    // out[i] = mean of values[k * stride + i] over the k that are left when the network has sorted them and
    // `trim` at each end are dropped, for i < N rounded up to kSortedTogether: rows and `out` are that long.
    // Returns whether all values were finite. At most 64 rows.
    bool (*trimmed_mean)(const float* values, std::size_t stride, std::size_t K, std::size_t N,
                         const Comparator* network, std::size_t comparators, std::size_t trim, float* out);
};

}  // namespace fgrpo
