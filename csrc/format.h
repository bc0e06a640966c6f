// What the format says about sizes and single codes, shared by the functions of delta_codec.h.
#pragma once

#include <string>

#include "delta_codec.h"

namespace fgrpo {

// Bits of a code. Tables of the kernels are indexed by the enum's value; the quantising codecs come first.
inline std::size_t code_bits(Codec codec) {
    constexpr std::size_t bits[] = {8, 4, 2, 16, 32};
    return bits[static_cast<std::size_t>(codec)];
}
inline bool has_scales(Codec codec) { return codec < Codec::bf16; }

// Bytes of codes before value `first`, which starts a block.
inline std::size_t code_offset(Format format, std::size_t first) {
    return first / 8 * code_bits(format.codec);
}

inline std::size_t blocks_of(Format format, std::size_t size) {
    return (size + format.block - 1) / format.block;
}

// The code of value `index` of a quantised payload, with its sign.
int code_at(const Payload& payload, std::size_t index);

// The largest code, and the bits of the largest magnitude of a scale that keeps code * scale below 2^128 for
// every code; of int2 2^127, which does so for all but -2.
int largest_code(Codec codec);
std::uint16_t largest_scale(Codec codec);

// Throw std::invalid_argument beginning with `where`, e.g. "aggregate: payload 3".
void require_format(const std::string& where, Format format);
void require_lengths(const std::string& where, const Payload& payload);

// The shortest decimal that reads back as the same float32.
std::string text(float value);

template <typename A, typename B>
bool overlap(std::span<A> a, std::span<B> b) {
    const auto first_a = reinterpret_cast<std::uintptr_t>(a.data()),
               first_b = reinterpret_cast<std::uintptr_t>(b.data());
    return first_a < first_b + b.size_bytes() && first_b < first_a + a.size_bytes() && !a.empty() &&
           !b.empty();
}

}  // namespace fgrpo
