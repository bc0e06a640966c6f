// What functions of several payloads share.
#pragma once

#include <bit>
#include <span>
#include <string>

#include "delta_codec.h"
#include "format.h"
#include "kernels.h"

namespace fgrpo {

// The values [first, first + N) of a payload as a payload; `first` is a multiple of the largest block.
Payload slice(const Payload& payload, std::size_t first, std::size_t N);

// A payload's part from value `first` on, which starts a block, as the kernels take it.
inline Term term_at(const Payload& payload, std::size_t first, float weight) {
    const Format format = payload.format;
    // Blocks are powers of two, and a division takes as long as some twenty codes.
    const std::size_t scale = has_scales(format.codec) ? first >> std::countr_zero(format.block) : 0;
    return {payload.codes.data() + code_offset(format, first), payload.scales.data() + scale, weight};
}

// Throw std::invalid_argument beginning with `function`: for no payloads, lengths that are wrong, or a size that
// is not `size`, which is payload 0's. `kind` is what the list's members are called.
void require_payloads(const std::string& function, std::span<const Payload> payloads);
void require_payloads(const std::string& function, std::span<const Payload> payloads, const std::string& kind,
                      std::size_t size);

// Throws, beginning with `where` and naming the index, if one of a payload's values [first, first + N) is not
// finite.
void require_finite(const std::string& where, const Payload& payload, std::size_t first, std::size_t N);

}  // namespace fgrpo
