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

// The product of the lanes' lower halves.
using Longs = Vector<uint64_t, kLanes / 2>;
inline Longs multiply_lower_halves(Longs a, Longs b) {
#if defined(__AVX512F__)
    return (Longs)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Longs)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Longs)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Philox4x32-10 for as many counters as there are 64-bit lanes. Upper halves hold rubbish until the end.
void uniform(uint64_t seed, uint64_t first, size_t N, float* __restrict uniform) {
    constexpr size_t counters = kLanes / 2;
    uint32_t words[4 * counters];
    for (size_t start = 0; start < N; start += 4 * counters) {
        Longs c0, c1, c2 = {}, c3 = {};
        for (size_t i = 0; i < counters; ++i) c0[i] = (first + start) / 4 + i;
        c1 = c0 >> 32;
        uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round) {
            const Longs product0 = multiply_lower_halves(c0, Longs{} + 0xD2511F53u);
            const Longs product1 = multiply_lower_halves(c2, Longs{} + 0xCD9E8D57u);
            c0 = (product1 >> 32) ^ c1 ^ k0;
            c1 = product1;
            c2 = (product0 >> 32) ^ c3 ^ k1;
            c3 = product0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        const Longs lower = (c0 & 0xffffffffu) | (c1 << 32), upper = (c2 & 0xffffffffu) | (c3 << 32);
        for (size_t i = 0; i < counters; ++i) {
            const uint64_t pair[2] = {lower[i], upper[i]};
            __builtin_memcpy(words + 4 * i, pair, sizeof(pair));
        }
        for (size_t i = 0; i < 4 * counters; ++i) {
            uniform[start + i] = static_cast<float>(static_cast<int>(words[i] >> 8)) * 0x1p-24f;
        }
    }
}

// peak / largest code, rounded up to bfloat16; 0 where that is not a normal number.
inline bfloat16 scale_for(uint32_t peak, int largest_code) {
    const float scale = float_of(peak) / static_cast<float>(largest_code);
    return static_cast<bfloat16>(scale < 0x1p-126f ? 0 : (bits_of(scale) + 0xffffu) >> 16);
}

// |scaled| <= 127 * (1 + 2^-22), so adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low
// bits.
template <int bits>
inline typename Group<bits>::Ints round_to_nearest(typename Group<bits>::Floats scaled) {
    return (typename Group<bits>::Ints)(scaled + 0x1.8p23f) - 0x4b400000;
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
void quantise_blocks(const float* delta, const uint32_t* peaks, const float* uniform, size_t block,
                     size_t blocks, uint8_t* __restrict codes, bfloat16* __restrict scales, float* error) {
    using G = Group<bits>;
    const size_t bytes = block / G::slots;
    for (size_t b = 0; b < blocks; ++b) {
        scales[b] = scale_for(peaks[b], kLargestCode<bits>);
        const float scale = widen(scales[b]);
        const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
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
void quantise(const float* delta, const uint32_t* peaks, const float* uniform, size_t block, size_t blocks,
              uint8_t* codes, bfloat16* scales, float* error) {
    if (uniform && error) {
        quantise_blocks<bits, true, true>(delta, peaks, uniform, block, blocks, codes, scales, error);
    } else if (uniform) {
        quantise_blocks<bits, true, false>(delta, peaks, uniform, block, blocks, codes, scales, nullptr);
    } else if (error) {
        quantise_blocks<bits, false, true>(delta, peaks, nullptr, block, blocks, codes, scales, error);
    } else {
        quantise_blocks<bits, false, false>(delta, peaks, nullptr, block, blocks, codes, scales, nullptr);
    }
}

}  // namespace
}  // namespace fgrpo
