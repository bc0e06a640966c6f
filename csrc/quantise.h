// For kernels.cpp alone (see there): from a delta to codes.
#pragma once

#include "delta.h"
#include "philox.h"
#include "scales.h"

namespace fgrpo {
namespace {

// |scaled| < 2^22, so adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits. Scales by
// mse may put values beyond the range.
template <int bits>
inline typename Group<bits>::Ints round_to_nearest(typename Group<bits>::Floats scaled) {
    using Ints = typename Group<bits>::Ints;
    Ints code = (Ints)(scaled + 0x1.8p23f) - 0x4b400000;
    const Ints largest = Ints{} + kLargestCode<bits>, lowest = ~largest;
    code = code > largest ? largest : code;
    return code < lowest ? lowest : code;
}

template <int bits>
inline typename Group<bits>::Ints round_down(typename Group<bits>::Floats shifted) {
    using Ints = typename Group<bits>::Ints;
    Ints floor = __builtin_convertvector(shifted, Ints);
    floor += shifted < __builtin_convertvector(floor, typename Group<bits>::Floats);  // true is -1
    // A scaled value may exceed the largest code by a rounding error.
    const Ints largest = Ints{} + kLargestCode<bits>;
    floor = floor > largest ? largest : floor;
    return floor < -largest ? -largest : floor;
}

// A block's codes, and delta - decoded to `error` (in place is fine) if there is feedback.
template <int bits, bool stochastic, bool feedback>
inline void quantise_block(const float* delta, float scale, const float* uniform, size_t block,
                           uint8_t* codes, float* error) {
    using G = Group<bits>;
    const size_t bytes = block / G::slots;
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    const auto pack = [&](size_t start) {
        typename G::Ints packed = {};
#pragma GCC unroll 4
        for (size_t slot = 0; slot < G::slots; ++slot) {
            const size_t at = slot * bytes + start;
            const auto value = load<typename G::Floats>(delta + at);
            typename G::Ints code;
            if constexpr (stochastic) {
                code = round_down<bits>(value * inverse + load<typename G::Floats>(uniform + at));
            } else {
                code = round_to_nearest<bits>(value * inverse);
            }
            if constexpr (feedback) {
                store(error + at, value - __builtin_convertvector(code, typename G::Floats) * scale);
            }
            packed |= (code & ((1 << bits) - 1)) << static_cast<int>(slot * bits);
        }
        return packed;
    };
    size_t start = 0;
    for (; start + 4 * G::lanes <= bytes; start += 4 * G::lanes) {
        typename G::Ints packed[4];
        for (size_t i = 0; i < 4; ++i) packed[i] = pack(start + i * G::lanes);
        store_bytes<G::lanes>(codes + start, packed);
    }
    for (; start < bytes; start += G::lanes) store_bytes<G::lanes>(codes + start, pack(start));
}

// A few blocks at a time: their scales, which do not wait for each other, then their codes. More at a time would
// leave memory idle during the second.
inline constexpr size_t kAtOnce = kLargestBlock / 2;

template <int bits>
uint32_t quantise(ReadBlocks* read, const Source& source, size_t N, const Quantised& to) {
    alignas(64) float buffer[kLargestBlock], uniform_[kLargestBlock];
    const size_t block = to.block, at_once = block < kAtOnce ? kAtOnce : block;
    uint32_t largest = 0;
    for (size_t start = 0; start < N; start += at_once) {
        const size_t end = start + at_once < N ? start + at_once : N;
        Block blocks[kAtOnce / kSmallestBlock];
        float scales[kAtOnce / kSmallestBlock];
        read(source, start, end - start, block, buffer, blocks);
        for (size_t at = start, b = 0; at < end; at += block, ++b) {
            const auto [delta, peak] = blocks[b];
            largest = peak > largest ? peak : largest;
            if (peak > kLargestMagnitude) return largest;
            const bfloat16 scale =
                to.mse ? scale_by_mse<bits>(delta, peak, block) : scale_by_absmax<bits>(peak);
            scales[b] = widen(scale);
            to.scales[at / block] = scale;
        }
        for (size_t at = start, b = 0; at < end; at += block, ++b) {
            const float *delta = blocks[b].delta, scale = scales[b];
            uint8_t* codes = to.codes + at / Group<bits>::slots;
            const bool whole = end - at >= block;
            float* error = !to.error ? nullptr : whole ? to.error + at : buffer + (at - start);
            if (to.stochastic) uniform(to.seed, to.first + at, block, uniform_);
            if (to.stochastic && error) {
                quantise_block<bits, true, true>(delta, scale, uniform_, block, codes, error);
            } else if (to.stochastic) {
                quantise_block<bits, true, false>(delta, scale, uniform_, block, codes, nullptr);
            } else if (error) {
                quantise_block<bits, false, true>(delta, scale, nullptr, block, codes, error);
            } else {
                quantise_block<bits, false, false>(delta, scale, nullptr, block, codes, nullptr);
            }
            if (error && !whole) __builtin_memcpy(to.error + at, error, (end - at) * sizeof(float));
        }
    }
    return largest;
}

template <bool stochastic, bool feedback>
void round_values(const float* delta, const float* uniform, size_t N, uint8_t* __restrict codes,
                  float* error) {
    for (size_t i = 0; i < N; ++i) {
        const float value = delta[i];
        const uint32_t bits = bits_of(value);
        // The number's upper 16 bits, or what rounds to nearest, ties to even. |value| <= 2^127: no overflow.
        uint32_t below;
        if constexpr (stochastic) {
            below = static_cast<uint32_t>(static_cast<int>(uniform[i] * 0x1p16f));
        } else {
            below = 0x7fffu + (bits >> 16 & 1u);
        }
        const uint16_t rounded = static_cast<uint16_t>((bits + below) >> 16);
        __builtin_memcpy(codes + 2 * i, &rounded, sizeof(rounded));
        if constexpr (feedback) error[i] = value - float_of(static_cast<uint32_t>(rounded) << 16);
    }
}

void round_to_bfloat16(const float* delta, const float* uniform, size_t N, uint8_t* codes, float* error) {
    if (uniform && error) {
        round_values<true, true>(delta, uniform, N, codes, error);
    } else if (uniform) {
        round_values<true, false>(delta, uniform, N, codes, nullptr);
    } else if (error) {
        round_values<false, true>(delta, nullptr, N, codes, error);
    } else {
        round_values<false, false>(delta, nullptr, N, codes, nullptr);
    }
}

}  // namespace
}  // namespace fgrpo
