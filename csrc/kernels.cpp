// Compiled once per instruction set, with FGRPO_SIMD naming the table. The loops are plain C++ that the
// compiler turns into vector code, so that every table computes the same bits: the flags forbid fused
// multiply-add and reordering.
//
// Everything here has internal linkage and uses no inline function of a library: the linker keeps one copy of
// such a function, and were it the AVX-512 one, an older machine would stop at it.
#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fgrpo {
namespace {

using std::size_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline float widen(float value) { return value; }
inline float widen(bfloat16 value) { return float_of(static_cast<uint32_t>(value) << 16); }

template <int bits>
inline constexpr int kLargestCode = (1 << (bits - 1)) - 1;
template <int bits>
inline constexpr size_t kSlots = 8 / bits;  // codes in a byte

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

void uniform(uint64_t seed, uint64_t first, size_t N, float* __restrict uniform) {
    for (size_t i = 0; i < N / 4; ++i) {
        const uint64_t counter = first / 4 + i;
        uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0,
                 c3 = 0;
        uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round) {
            const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
            const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
            c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
            c1 = static_cast<uint32_t>(product1);
            c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
            c3 = static_cast<uint32_t>(product0);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        const uint32_t words[4] = {c0, c1, c2, c3};
        for (int w = 0; w < 4; ++w)
            uniform[4 * i + w] = static_cast<float>(static_cast<int>(words[w] >> 8)) * 0x1p-24f;
    }
}

// peak / largest code, rounded up to bfloat16; 0 where that is not a normal number.
inline bfloat16 scale_for(uint32_t peak, int largest_code) {
    const float scale = float_of(peak) / static_cast<float>(largest_code);
    return static_cast<bfloat16>(scale < 0x1p-126f ? 0 : (bits_of(scale) + 0xffffu) >> 16);
}

// |scaled| <= 127 * (1 + 2^-22), so adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low
// bits.
struct Nearest {
    static int code(float scaled, float, int) {
        return static_cast<int>(bits_of(scaled + 0x1.8p23f) - 0x4b400000u);
    }
};

struct Stochastic {
    static int code(float scaled, float uniform, int largest) {
        const float shifted = scaled + uniform;
        int floor = static_cast<int>(shifted);
        floor -= shifted < static_cast<float>(floor) ? 1 : 0;
        // A scaled value may exceed the largest code by a rounding error.
        floor = floor > largest ? largest : floor;
        return floor < -largest ? -largest : floor;
    }
};

// All the values of one block. `step` is the smallest number of bytes in a block: a constant length for the
// vectoriser.
template <int bits, typename Round, bool feedback>
inline void quantise_block(const float* delta, const float* uniform, float scale, float inverse, size_t block,
                           uint8_t* __restrict codes, float* error) {
    constexpr size_t step = kSmallestBlock / kSlots<bits>;
    const size_t bytes = block / kSlots<bits>;
    for (size_t start = 0; start < bytes; start += step) {
        uint32_t packed[step] = {};
        for (size_t slot = 0; slot < kSlots<bits>; ++slot) {
            const size_t offset = slot * bytes + start;
            for (size_t i = 0; i < step; ++i) {
                const float value = delta[offset + i];
                const int code =
                    Round::code(value * inverse, uniform ? uniform[offset + i] : 0.0f, kLargestCode<bits>);
                if (feedback) error[offset + i] = value - static_cast<float>(code) * scale;
                packed[i] |= (static_cast<uint32_t>(code) & ((1u << bits) - 1)) << (slot * bits);
            }
        }
        for (size_t i = 0; i < step; ++i) codes[start + i] = static_cast<uint8_t>(packed[i]);
    }
}

template <int bits, typename Round, bool feedback>
void quantise_blocks(const float* delta, const uint32_t* peaks, const float* uniform, size_t block,
                     size_t blocks, uint8_t* codes, bfloat16* scales, float* error) {
    for (size_t b = 0; b < blocks; ++b) {
        scales[b] = scale_for(peaks[b], kLargestCode<bits>);
        const float scale = widen(scales[b]);
        const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        const size_t at = b * block;
        quantise_block<bits, Round, feedback>(delta + at, uniform ? uniform + at : nullptr, scale, inverse,
                                              block, codes + at / kSlots<bits>,
                                              feedback ? error + at : nullptr);
    }
}

template <int bits>
void quantise(const float* delta, const uint32_t* peaks, const float* uniform, size_t block, size_t blocks,
              uint8_t* codes, bfloat16* scales, float* error) {
    if (uniform && error) {
        quantise_blocks<bits, Stochastic, true>(delta, peaks, uniform, block, blocks, codes, scales, error);
    } else if (uniform) {
        quantise_blocks<bits, Stochastic, false>(delta, peaks, uniform, block, blocks, codes, scales,
                                                 nullptr);
    } else if (error) {
        quantise_blocks<bits, Nearest, true>(delta, peaks, nullptr, block, blocks, codes, scales, error);
    } else {
        quantise_blocks<bits, Nearest, false>(delta, peaks, nullptr, block, blocks, codes, scales, nullptr);
    }
}

template <int bits>
void accumulate(const uint8_t* __restrict codes, const bfloat16* __restrict scales, float weight,
                size_t block, size_t blocks, float* __restrict sum) {
    constexpr size_t step = kSmallestBlock / kSlots<bits>;
    const size_t bytes = block / kSlots<bits>;
    for (size_t b = 0; b < blocks; ++b, codes += bytes, sum += block) {
        const float factor = weight * widen(scales[b]);
        for (size_t start = 0; start < bytes; start += step) {
            for (size_t slot = 0; slot < kSlots<bits>; ++slot) {
                for (size_t i = 0; i < step; ++i) {
                    const int shifted = static_cast<int>(static_cast<uint32_t>(codes[start + i])
                                                         << (32 - bits - slot * bits));
                    sum[slot * bytes + start + i] += factor * static_cast<float>(shifted >> (32 - bits));
                }
            }
        }
    }
}

void accumulate_exact(const uint8_t* __restrict values, float weight, size_t N, float* __restrict sum) {
    for (size_t i = 0; i < N; ++i) {
        float value;
        __builtin_memcpy(&value, values + 4 * i, 4);
        sum[i] += weight * value;
    }
}

#if defined(__AVX512F__)
using Register = __m512;
inline void store_past_caches(float* out, const float* tile) { _mm512_stream_ps(out, _mm512_load_ps(tile)); }
#elif defined(__AVX2__)
using Register = __m256;
inline void store_past_caches(float* out, const float* tile) { _mm256_stream_ps(out, _mm256_load_ps(tile)); }
#elif defined(__SSE2__)
using Register = __m128;
inline void store_past_caches(float* out, const float* tile) { _mm_stream_ps(out, _mm_load_ps(tile)); }
#else
using Register = float;
inline void store_past_caches(float* out, const float* tile) { *out = *tile; }
#endif

void stream(const float* tile, size_t N, float* out) {
    constexpr size_t width = sizeof(Register) / sizeof(float);
    size_t i = 0;
    if (reinterpret_cast<std::uintptr_t>(out) % 64 == 0) {
        for (; i + width <= N; i += width) store_past_caches(out + i, tile + i);
    }
    for (; i < N; ++i) out[i] = tile[i];
}

void fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

template <int bits>
bool out_of_range(const uint8_t* codes, size_t bytes) {
    uint8_t found = 0;
    for (size_t i = 0; i < bytes; ++i) {
        for (size_t slot = 0; slot < kSlots<bits>; ++slot) {
            const uint8_t aligned = static_cast<uint8_t>(codes[i] << (8 - bits - slot * bits));
            found |= static_cast<uint8_t>(static_cast<uint8_t>(aligned >> (8 - bits)) == 1u << (bits - 1));
        }
    }
    return found != 0;
}

}  // namespace

// Constant-initialised: no code of this file runs before the machine is known to support it.
extern const Kernels FGRPO_SIMD;
constinit const Kernels FGRPO_SIMD = {
    FGRPO_SIMD_NAME,
    {{delta<float, float>, delta<float, bfloat16>}, {delta<bfloat16, float>, delta<bfloat16, bfloat16>}},
    peaks,
    uniform,
    {quantise<8>, quantise<4>, quantise<2>},
    {accumulate<8>, accumulate<4>, accumulate<2>},
    accumulate_exact,
    stream,
    fence,
    {out_of_range<8>, out_of_range<4>, out_of_range<2>},
};

}  // namespace fgrpo
