// The format of delta_codec.h once more, in the plainest form, for the fuzz target to compare with.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "delta_codec.h"

namespace fgrpo::fuzz {

inline float widen(bfloat16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16); }

inline std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

// The same bits, or two NaNs: which NaN an operation gives is not part of the contract.
inline bool same(float a, float b) { return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)); }

inline std::size_t bits_of(Codec codec) {
    switch (codec) {
        case Codec::int8:
            return 8;
        case Codec::int4:
            return 4;
        case Codec::int2:
            return 2;
        case Codec::none:
            return 32;
    }
    return 0;
}

inline bool quantises(Codec codec) { return codec != Codec::none; }

inline int largest_code_of(Codec codec) { return codec == Codec::int8 ? 127 : codec == Codec::int4 ? 7 : 1; }

// The codes of a quantising codec in order, padding included; of `none`, the values.
inline std::vector<float> unpacked(const Payload& payload) {
    std::vector<float> codes;
    if (!quantises(payload.format.codec)) {
        codes.resize(payload.size);
        if (payload.size) std::memcpy(codes.data(), payload.codes.data(), payload.codes.size());
        return codes;
    }
    const std::size_t bits = bits_of(payload.format.codec), bytes = payload.format.block * bits / 8;
    const int range = 1 << bits;
    codes.reserve(payload.codes.size() * (8 / bits));
    for (std::size_t first = 0; first < payload.codes.size(); first += bytes) {
        for (std::size_t shift = 0; shift < 8; shift += bits) {
            for (std::size_t i = first; i < first + bytes; ++i) {
                const int code = payload.codes[i] >> shift & (range - 1);
                codes.push_back(static_cast<float>(code < range / 2 ? code : code - range));
            }
        }
    }
    return codes;
}

inline bool encodable(float value) { return std::abs(value) <= 0x1p127f; }  // false for NaN

// Whether encode() could have written the scale: the smallest bfloat16 of at least largest magnitude / largest
// code, for a magnitude of at most 2^127; 0 instead of subnormal numbers.
inline bool well_formed(bfloat16 scale, Codec codec) {
    const auto bits = static_cast<std::uint16_t>(scale);
    const float value = widen(scale);
    if (bits == 0) return true;
    if (!std::isnormal(value) || std::signbit(value)) return false;
    const float next_smaller = widen(bfloat16{static_cast<std::uint16_t>(bits - 1)});
    return double{next_smaller} * largest_code_of(codec) < 0x1p127;
}

// Whether check() should let a payload pass; `codes` are its unpacked ones.
inline bool well_formed(const Payload& payload, const std::vector<float>& codes) {
    const Codec codec = payload.format.codec;
    if (!quantises(codec)) return std::all_of(codes.begin(), codes.end(), encodable);
    for (const bfloat16 scale : payload.scales) {
        if (!well_formed(scale, codec)) return false;
    }
    const auto padding = codes.begin() + static_cast<std::ptrdiff_t>(payload.size);
    const float least = static_cast<float>(-largest_code_of(codec));
    return std::all_of(codes.begin(), padding, [&](float code) { return code >= least; }) &&
           std::all_of(padding, codes.end(), [](float code) { return code == 0; });
}

// One term of aggregate()'s sum. decode() is a sum of one term of weight 1 from -0.
inline float add_term(float sum, float weight, const Payload& payload, const std::vector<float>& codes,
                      std::size_t index) {
    if (!quantises(payload.format.codec)) return std::fma(weight, codes[index], sum);
    const float factor = weight * widen(payload.scales[index / payload.format.block]);
    return std::fma(factor, codes[index], sum);
}

}  // namespace fgrpo::fuzz
