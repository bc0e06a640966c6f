// The format of delta_codec.h once more, in the plainest form, for the fuzz target to compare with.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <tuple>
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
        case Codec::bf16:
            return 16;
        case Codec::none:
            return 32;
    }
    return 0;
}

inline bool quantises(Codec codec) { return bits_of(codec) <= 8; }

inline int largest_code_of(Codec codec) { return codec == Codec::int8 ? 127 : codec == Codec::int4 ? 7 : 1; }

// The codes of a quantising codec in order, padding included; of the others, the values.
inline std::vector<float> unpacked(const Payload& payload) {
    std::vector<float> codes;
    if (!quantises(payload.format.codec)) {
        const bool narrow = payload.format.codec == Codec::bf16;
        for (std::size_t i = 0; i < payload.size; ++i) {
            std::uint32_t bits = 0;
            if (narrow) {
                bits = std::uint32_t{payload.codes[2 * i]} << 16 | std::uint32_t{payload.codes[2 * i + 1]}
                                                                       << 24;
            } else {
                std::memcpy(&bits, &payload.codes[4 * i], 4);
            }
            codes.push_back(std::bit_cast<float>(bits));
        }
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

// The bfloat16 next to an encodable value on the side of 0, the one beyond, and the nearest, ties to even.
inline bfloat16 inner(float value) { return bfloat16{static_cast<std::uint16_t>(bits_of(value) >> 16)}; }
inline bfloat16 outer(float value) {
    return bfloat16{static_cast<std::uint16_t>(static_cast<std::uint16_t>(inner(value)) + 1)};
}
inline bfloat16 nearest(float value) {
    const double to_inner = std::abs(double{value} - widen(inner(value))),
                 to_outer = std::abs(double{value} - widen(outer(value)));
    if (to_inner != to_outer) return to_inner < to_outer ? inner(value) : outer(value);
    return static_cast<std::uint16_t>(inner(value)) % 2 == 0 ? inner(value) : outer(value);
}

// What a block's largest value may become in units of a scale by mse.
inline std::span<const float> peak_codes(Codec codec) {
    static constexpr float k8[] = {128, 127, 126, 125, 124, 123}, k4[] = {8, 8.5f, 9, 7.5f, 10, 11},
                           k2[] = {2.5f, 3, 2, 3.5f, 4.5f, 6};
    if (codec == Codec::int8) return k8;
    if (codec == Codec::int4) return k4;
    return k2;
}

// What the nearest codes leave of a block.
inline double squared_error(std::span<const float> delta, double scale, Codec codec) {
    const double highest = largest_code_of(codec);
    double sum = 0;
    for (const float value : delta) {
        const double error = value - scale * std::clamp(std::nearbyint(value / scale), -highest - 1, highest);
        sum += error * error;
    }
    return sum;
}

// Whether a block may have the scale: 0, or a normal number of either sign with which every code fits float32;
// int2 may have 2^127 too, for blocks without the code -2.
inline bool well_formed(bfloat16 scale, Codec codec) {
    if (static_cast<std::uint16_t>(scale) == 0) return true;
    const double magnitude = std::abs(double{widen(scale)});
    if (!std::isnormal(widen(scale))) return false;
    return codec == Codec::int2 ? magnitude <= 0x1p127 : magnitude * (largest_code_of(codec) + 1) < 0x1p128;
}

// Whether block b has the code that a negative scale is for.
inline bool has_lowest_code(const std::vector<float>& codes, std::size_t b, Format format) {
    const auto first = codes.begin() + static_cast<std::ptrdiff_t>(b * format.block);
    const auto lowest = static_cast<float>(-largest_code_of(format.codec) - 1);
    return std::find(first, first + static_cast<std::ptrdiff_t>(format.block), lowest) !=
           first + static_cast<std::ptrdiff_t>(format.block);
}

// Whether check() should let a payload pass; `codes` are its unpacked ones.
inline bool well_formed(const Payload& payload, const std::vector<float>& codes) {
    const Codec codec = payload.format.codec;
    if (!quantises(codec)) return std::all_of(codes.begin(), codes.end(), encodable);
    for (std::size_t b = 0; b < payload.scales.size(); ++b) {
        if (!well_formed(payload.scales[b], codec)) return false;
        if (std::signbit(widen(payload.scales[b])) && !has_lowest_code(codes, b, payload.format))
            return false;
    }
    for (std::size_t i = 0; i < payload.size; ++i) {
        if (!std::isfinite(codes[i] * widen(payload.scales[i / payload.format.block]))) return false;
    }
    return std::all_of(codes.begin() + static_cast<std::ptrdiff_t>(payload.size), codes.end(),
                       [](float code) { return code == 0; });
}

// One term of aggregate()'s sum. decode() is a sum of one term of weight 1 from -0.
inline float add_term(float sum, float weight, const Payload& payload, const std::vector<float>& codes,
                      std::size_t index) {
    if (!quantises(payload.format.codec)) return std::fma(weight, codes[index], sum);
    const float factor = weight * widen(payload.scales[index / payload.format.block]);
    return std::fma(factor, codes[index], sum);
}

// The order in which aggregate() adds terms.
inline bool comes_before(const Payload& a, float a_weight, const Payload& b, float b_weight) {
    const auto key = [](const Payload& payload, float weight) {
        return std::tuple(payload.format.codec, payload.format.block, bits_of(weight));
    };
    if (key(a, a_weight) != key(b, b_weight)) return key(a, a_weight) < key(b, b_weight);
    const auto bytes = [](std::span<const bfloat16> scales) {
        std::vector<std::uint8_t> bytes;
        for (const bfloat16 scale : scales) {
            bytes.push_back(static_cast<std::uint8_t>(static_cast<std::uint16_t>(scale)));
            bytes.push_back(static_cast<std::uint8_t>(static_cast<std::uint16_t>(scale) >> 8));
        }
        return bytes;
    };
    const auto a_scales = bytes(a.scales), b_scales = bytes(b.scales);
    if (a_scales != b_scales) return a_scales < b_scales;
    return std::lexicographical_compare(a.codes.begin(), a.codes.end(), b.codes.begin(), b.codes.end());
}

}  // namespace fgrpo::fuzz
