// A lossless update from one vector of bfloat16 to another that differs in some of its values: how a server
// sends its new model to clients that hold the old one. Exact to the bit for every bit pattern: NaN payloads,
// -0, subnormals. This header is the whole contract; it needs neither Python nor Torch.
//
// Format, little-endian, version 1. Values are cut into blocks of kUpdateBlock, the last one shorter.
//
//   bytes   0..3    "FGSU"
//           4       version, 1
//           5..7    0
//           8..15   size: values
//           16..23  hash of the base
//           24..31  hash of the result
//           32..    a 16-bit length for each block, in bytes; 0 where the block does not change
//           ...     the blocks, in order
//           last 8  0, so that readers may load whole words
//
// A block starts with its form:
//
//   0  list    1 byte: gap order | value order << 4; 2 bytes: changed values - 1; then for each changed value,
//              ascending, a code of the unchanged values before it and a code of its step
//   1  bitmap  1 byte: value order << 4; (N + 7) / 8 bytes: bit i set where value i changes; then for each
//              changed value a code of its step
//   2  raw     the N new values
//
// Step. Patterns are ordered as the numbers are (-NaN < -inf < -0 < 0 < inf < NaN); a changed value is d != 0
// places above its base, d modulo 2^16 taken from [-2^15, 2^15). The step is 2 * (|d| - 1) + (d < 0).
//
// Codes are exponential Golomb codes of an order k from 0 to 15, in a stream of bits from the low end of each
// byte. With y = x + 2^k of n bits, x is n - 1 - k zeros, a one, and the lower n - 1 bits of y. The last byte
// is filled up with zeros. An encoder may choose any form and orders.
//
// Hash of a block of N values: 32 streams s_i start as mixed(i * 0x9e3779b97f4a7c15), i from 1. The values,
// filled up with zeros, are 64-bit words that go to the streams in turn: s ^= word, then s = lower half of s *
// 0xfffeb81b + upper half of s. Then h = N, and for each stream h = mixed(h ^ s_i) + i - 1. `mixed` is the
// finaliser of splitmix64. The hash of the whole is its size plus, for each block b from 0, the finaliser
// x ^= x >> 33, x *= 0xff51afd7ed558ccd, x ^= x >> 33 of x = h + (b + 1) * 0x9e3779b97f4a7c15.
//
// Size. At most 2 bytes a value, 3 a block, and 40; nothing changed is 2 a block, and 40. An update's bytes
// depend neither on the instruction set nor on the number of threads.
//
// Safety. Whatever the bytes of an update are, nothing outside the spans is read or written, and nothing is
// allocated. The hashes are 64 bits each, made to find mistakes and damage, not forgeries: whoever may write an
// update may write any model. Sign it where that matters.
//
// Memory, errors and `threads` are as in delta_codec.h. Spans of bfloat16 must be aligned to 2 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "delta_codec.h"

namespace fgrpo {

inline constexpr std::size_t kUpdateBlock = std::size_t{1} << 14;  // values

// The room that encode_update needs for `size` values: a little more than the longest update.
std::size_t update_bound(std::size_t size);

// Writes the update from `base` to `updated` and returns its length; the rest of `out` may hold anything.
// Throws std::invalid_argument unless base is as long as updated, `out` holds update_bound(size) bytes or more,
// and `out` overlaps neither.
std::size_t encode_update(std::span<const bfloat16> updated, std::span<const bfloat16> base,
                          std::span<std::uint8_t> out, int threads = 0);

// out = the vector that `update` was made for. `out` may be `base` itself, but may not overlap it otherwise,
// nor overlap the update. Throws std::invalid_argument, naming the fault, unless the update is well formed, made
// for this base, and leads to the result that it names. In place a throw leaves `base` as it was, for which the
// update is applied twice, first to no effect; with an `out` of its own, `out` may then hold anything.
void apply_update(std::span<const bfloat16> base, std::span<const std::uint8_t> update,
                  std::span<bfloat16> out, int threads = 0);

// Throws what apply_update would throw for this base, and writes nothing.
void check_update(std::span<const bfloat16> base, std::span<const std::uint8_t> update, int threads = 0);

}  // namespace fgrpo
