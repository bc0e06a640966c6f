// What the format of sparse_delta.h says about headers, blocks and single values, shared by the functions there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "sparse_delta.h"

namespace fgrpo {

inline constexpr char kMagic[] = {'F', 'G', 'S', 'U', 1, 0, 0, 0};  // with the version
inline constexpr std::size_t kHeaderBytes = 32, kPadding = 8;
inline constexpr std::size_t kUpdateGrain = 4;  // blocks; fewer are not worth a thread

enum Form : std::uint8_t { kList, kBitmap, kRaw };

struct UpdateHeader {
    char magic[8];
    std::uint64_t size, base_hash, result_hash;
};
static_assert(sizeof(UpdateHeader) == kHeaderBytes);

inline const std::uint16_t* patterns(std::span<const bfloat16> values) {
    return reinterpret_cast<const std::uint16_t*>(values.data());
}

inline std::size_t count_blocks(std::size_t size) { return size / kUpdateBlock + (size % kUpdateBlock != 0); }

inline std::size_t length_of_block(std::size_t size, std::size_t block) {
    return std::min(kUpdateBlock, size - block * kUpdateBlock);
}

// A pattern's place in the order of numbers, and back. Without branches here and below: signs are random.
inline std::uint16_t sign_mask(std::uint16_t x) { return static_cast<std::uint16_t>(-(x >> 15)); }
inline std::uint16_t place_of(std::uint16_t pattern) {
    return static_cast<std::uint16_t>(pattern ^ (sign_mask(pattern) | 0x8000));
}
inline std::uint16_t pattern_of(std::uint16_t place) {
    return static_cast<std::uint16_t>(place ^ (~sign_mask(place) | 0x8000));
}

inline std::uint16_t step_between(std::uint16_t base, std::uint16_t updated) {
    const int d = static_cast<std::int16_t>(place_of(updated) - place_of(base)), sign = d >> 31;
    return static_cast<std::uint16_t>(2 * ((d ^ sign) - sign - 1) - sign);
}
inline std::uint16_t stepped(std::uint16_t base, std::uint64_t step) {
    const int magnitude = static_cast<int>(step / 2) + 1, sign = -static_cast<int>(step % 2);
    return pattern_of(static_cast<std::uint16_t>(place_of(base) + (magnitude ^ sign) - sign));
}

// The hash of the whole is a sum over blocks, which threads can add to in any order.
inline std::uint64_t share_of_block(std::uint64_t hash, std::size_t block) {
    std::uint64_t x = hash + 0x9e3779b97f4a7c15u * (block + 1);
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
    return x ^ (x >> 33);
}

}  // namespace fgrpo
