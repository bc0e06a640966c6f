// For kernels.cpp alone (see there): from a delta to codes.
#pragma once

#include "delta.h"
#include "philox.h"
#include "scales.h"

namespace fgrpo {
namespace {

enum class Way { absmax, mse, stochastic };

// values + odd / 2^16: the product is exact, so fusing it with the sum changes nothing.
template <size_t lanes>
inline Vector<float, lanes> dithered(Vector<float, lanes> values, Vector<float, lanes> odd) {
    constexpr float unit = 0x1p-16f;
#if defined(__AVX512F__)
    if constexpr (lanes == 16) return (Vector<float, 16>)_mm512_fmadd_ps(odd, _mm512_set1_ps(unit), values);
#endif
#if defined(__AVX2__)
    if constexpr (lanes == 8) return (Vector<float, 8>)_mm256_fmadd_ps(odd, _mm256_set1_ps(unit), values);
#endif
    return values + odd * unit;
}

template <int bits, Way way>
inline typename Group<bits>::Ints code_of(typename Group<bits>::Floats scaled, const uint16_t* random) {
    using G = Group<bits>;
    using Ints = typename G::Ints;
    if constexpr (way == Way::stochastic) {
        const Ints odd = __builtin_convertvector(load<Vector<int16_t, G::lanes>>(random) | int16_t{1}, Ints);
        scaled = dithered<G::lanes>(scaled, __builtin_convertvector(odd, typename G::Floats));
    }
    Ints code = round_to_nearest<G::lanes>(scaled);
    if constexpr (way ==
                  Way::mse) {  // values may lie beyond the range; with absmax they do not (docs/codec.md)
        const Ints largest = Ints{} + kLargestCode<bits>, lowest = ~largest;
        code = code > largest ? largest : code;
        code = code < lowest ? lowest : code;
    }
    return code;
}

// A block's codes, and delta - decoded to `error` (in place is fine) if there is feedback.
template <int bits, Way way, bool feedback>
inline void quantise_block(const float* delta, float scale, const uint16_t* random, size_t block,
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
            const auto code = code_of<bits, way>(value * inverse, random + at);
            if constexpr (feedback) {
                store(error + at, value - __builtin_convertvector(code, typename G::Floats) * scale);
            }
            if constexpr (G::slots == 1) {
                packed = code;
            } else {
                packed |= (code & ((1 << bits) - 1)) << static_cast<int>(slot * bits);
            }
        }
        return packed;
    };
    size_t start = 0;
    for (; start + 4 * G::lanes <= bytes; start += 4 * G::lanes) {
        typename G::Ints packed[4];
        for (size_t i = 0; i < 4; ++i) packed[i] = pack(start + i * G::lanes);
        store_bytes<G::lanes, G::slots == 1>(codes + start, packed);
    }
    for (; start < bytes; start += G::lanes) store_bytes<G::lanes>(codes + start, pack(start));
}

// A few blocks at a time: their scales, which do not wait for each other, then their codes, while memory brings the
// next few.
inline constexpr size_t kAtOnce = kLargestBlock / 2;

struct Few {
    size_t start, N;  // values [start, start + N) of the tile
    Block blocks[kAtOnce / kSmallestBlock];
    float scales[kAtOnce / kSmallestBlock];
    float* buffer;  // room for a block for each
    const uint16_t* random;
};

template <int bits, Way way, bool feedback>
void quantise_few(const Few& few, const Quantised& to) {
    const size_t block = to.block;
    for (size_t at = 0, b = 0; at < few.N; at += block, ++b) {
        uint8_t* codes = to.codes + (few.start + at) / Group<bits>::slots;
        float* error = feedback ? to.error + few.start + at : nullptr;
        const bool whole = few.N - at >= block;
        quantise_block<bits, way, feedback>(few.blocks[b].delta, few.scales[b], few.random + at, block, codes,
                                            whole ? error : few.buffer + at);
        if (feedback && !whole) __builtin_memcpy(error, few.buffer + at, (few.N - at) * sizeof(float));
    }
}

template <int bits>
uint32_t quantise(ReadBlocks* read, const Source& source, size_t N, const Quantised& to) {
    static constexpr decltype(&quantise_few<bits, Way::absmax, false>) ways[3][2] = {
        {quantise_few<bits, Way::absmax, false>, quantise_few<bits, Way::absmax, true>},
        {quantise_few<bits, Way::mse, false>, quantise_few<bits, Way::mse, true>},
        {quantise_few<bits, Way::stochastic, false>, quantise_few<bits, Way::stochastic, true>}};
    const Way way = to.mse ? Way::mse : to.stochastic ? Way::stochastic : Way::absmax;
    const auto write = ways[static_cast<int>(way)][to.error != nullptr];

    alignas(64) float buffer[kLargestBlock];
    alignas(64) uint16_t random[kLargestBlock];
    Few few;
    few.buffer = buffer;
    few.random = random;
    const size_t block = to.block, at_once = block < kAtOnce ? kAtOnce : block;
    uint32_t largest = 0;
    for (size_t start = 0; start < N; start += at_once) {
        few.start = start;
        few.N = start + at_once < N ? at_once : N - start;
        read(source, start, few.N, block, buffer, few.blocks);
        for (size_t at = 0, b = 0; at < few.N; at += block, ++b) {
            const auto [delta, peak] = few.blocks[b];
            largest = peak > largest ? peak : largest;
            if (peak > kLargestMagnitude) return largest;
            const bfloat16 scale =
                way == Way::mse ? scale_by_mse<bits>(delta, peak, block) : scale_by_absmax<bits>(peak);
            few.scales[b] = widen(scale);
            to.scales[(start + at) / block] = scale;
        }
        if (way == Way::stochastic) {
            random_bits(to.seed, to.first + start, (few.N + block - 1) / block * block, random);
        }
        write(few, to);
    }
    return largest;
}

template <bool stochastic, bool feedback>
void round_values(const float* delta, const uint16_t* random, size_t N, uint8_t* __restrict codes,
                  float* error) {
    for (size_t i = 0; i < N; ++i) {
        const float value = delta[i];
        const uint32_t bits = bits_of(value);
        // The number's upper 16 bits, or what rounds to nearest, ties to even. |value| <= 2^127: no overflow.
        uint32_t below;
        if constexpr (stochastic) {
            below = random[i];
        } else {
            below = 0x7fffu + (bits >> 16 & 1u);
        }
        const uint16_t rounded = static_cast<uint16_t>((bits + below) >> 16);
        __builtin_memcpy(codes + 2 * i, &rounded, sizeof(rounded));
        if constexpr (feedback) error[i] = value - float_of(static_cast<uint32_t>(rounded) << 16);
    }
}

void round_to_bfloat16(const float* delta, const uint16_t* random, size_t N, uint8_t* codes, float* error) {
    if (random && error) {
        round_values<true, true>(delta, random, N, codes, error);
    } else if (random) {
        round_values<true, false>(delta, random, N, codes, nullptr);
    } else if (error) {
        round_values<false, true>(delta, nullptr, N, codes, error);
    } else {
        round_values<false, false>(delta, nullptr, N, codes, nullptr);
    }
}

}  // namespace
}  // namespace fgrpo
