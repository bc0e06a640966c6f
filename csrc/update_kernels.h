// The inner loops of encode_update.cpp and apply_update.cpp, compiled once per instruction set like those of kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fgrpo {

struct UpdateKernels {
    // The positions below N at which the patterns differ, ascending; returns how many. N is at most 2^16;
    // `positions` has room for N + 4.
    std::size_t (*changes)(const std::uint16_t* updated, const std::uint16_t* base, std::size_t N,
                           std::uint16_t* positions);

    // A 64-bit hash of N values.
    std::uint64_t (*hash)(const std::uint16_t* values, std::size_t N);
};

}  // namespace fgrpo
