// What functions of several payloads share (robust.cpp, gram.cpp).
#pragma once

#include <span>
#include <string>

#include "delta_codec.h"

namespace fgrpo {

// The values [first, first + N) of a payload as a payload; `first` is a multiple of the largest block.
Payload slice(const Payload& payload, std::size_t first, std::size_t N);

// Throw std::invalid_argument beginning with `function`: for no payloads, lengths that are wrong, or a size that
// is not `size`, which is payload 0's. `kind` is what the list's members are called.
void require_payloads(const std::string& function, std::span<const Payload> payloads);
void require_payloads(const std::string& function, std::span<const Payload> payloads, const std::string& kind,
                      std::size_t size);

// Throws, beginning with `where` and naming the index, if one of a payload's values [first, first + N) is not
// finite.
void require_finite(const std::string& where, const Payload& payload, std::size_t first, std::size_t N);

}  // namespace fgrpo
