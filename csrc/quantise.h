// For kernels.cpp alone (see there): from parameters to codes.
#pragma once

#include "vectors.h"

namespace fgrpo {
namespace {

template <typename Updated, typename Base>
void delta(const void* updated_, const void* base_, const float* residual, size_t N,
           float* __restrict delta) {
    const Updated* updated = static_cast<const Updated*>(updated_);
    const Base* base = static_cast<const Base*>(base_);
    if (base && residual) {
        for (size_t i = 0; i < N; ++i) delta[i] = (widen(updated[i]) - widen(base[i])) + residual[i];
    } else if (base) {
        for (size_t i = 0; i < N; ++i) delta[i] = widen(updated[i]) - widen(base[i]);
    } else if (residual) {
        for (size_t i = 0; i < N; ++i) delta[i] = widen(updated[i]) + residual[i];
    } else {
        for (size_t i = 0; i < N; ++i) delta[i] = widen(updated[i]);
    }
}

void peaks(const float* __restrict delta, size_t block, size_t blocks, uint32_t* __restrict peaks) {
    for (size_t b = 0; b < blocks; ++b, delta += block) {
        uint32_t peak = 0;
        for (size_t i = 0; i < block; ++i) {
            const uint32_t magnitude = bits_of(delta[i]) & 0x7fffffffu;
            peak = magnitude > peak ? magnitude : peak;
        }
        peaks[b] = peak;
    }
}

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

template <int bits, bool stochastic, bool feedback>
void quantise_blocks(const float* delta, const bfloat16* scales, const float* uniform, size_t block,
                     size_t blocks, uint8_t* __restrict codes, float* error) {
    using G = Group<bits>;
    const size_t bytes = block / G::slots;
    for (size_t b = 0; b < blocks; ++b) {
        const float scale = widen(scales[b]);
        const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
        for (size_t start = 0; start < bytes; start += G::lanes) {
            typename G::Ints packed = {};
            for (size_t slot = 0; slot < G::slots; ++slot) {
                const size_t at = b * block + slot * bytes + start;
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
            store_bytes<G::lanes>(codes + b * bytes + start, packed);
        }
    }
}

template <int bits>
void quantise(const float* delta, const bfloat16* scales, const float* uniform, size_t block, size_t blocks,
              uint8_t* codes, float* error) {
    if (uniform && error) {
        quantise_blocks<bits, true, true>(delta, scales, uniform, block, blocks, codes, error);
    } else if (uniform) {
        quantise_blocks<bits, true, false>(delta, scales, uniform, block, blocks, codes, nullptr);
    } else if (error) {
        quantise_blocks<bits, false, true>(delta, scales, nullptr, block, blocks, codes, error);
    } else {
        quantise_blocks<bits, false, false>(delta, scales, nullptr, block, blocks, codes, nullptr);
    }
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
