// The order in which aggregate() adds its terms: see delta_codec.h.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "delta_codec.h"

namespace fgrpo {

struct Weighted {
    const Payload* payload;
    float weight;
    std::size_t place;  // in the caller's list
};

struct Ordered {
    std::vector<Weighted> terms;
    // The i of terms that equal term i - 1 in all that was compared, but may differ beyond. If none does, the order
    // is right whichever comes first; if one does, it has to be found again with more bytes.
    std::vector<std::size_t> ties;
};

// Terms in the order of codec, block, weight, and of the first `bytes` bytes of scales, then of codes.
Ordered in_order(std::span<const Payload> payloads, std::span<const float> weights, std::size_t bytes);

// Whether the blocks that hold the values [first, first + N) are the same bytes; `first` starts a block of either.
bool equal_blocks(const Payload& a, const Payload& b, std::size_t first, std::size_t N);

}  // namespace fgrpo
