// What the targets draw a payload's format from.
#pragma once

#include "input.h"

namespace fgrpo::fuzz {

inline constexpr Codec kCodecs[] = {Codec::int8, Codec::int4, Codec::int2, Codec::bf16, Codec::none};

inline Format format_from(Input& input) {
    constexpr std::size_t kMostlySmall[] = {32, 32, 32, 32, 64, 64, 64, 128, 256, 512, 1024};
    const Codec codec = input.one_of(kCodecs);
    return {codec, input.one_of(kMostlySmall)};
}

}  // namespace fgrpo::fuzz
