// For kernels.cpp alone (see there): from codes to sums.
#pragma once

#include "vectors.h"

namespace fgrpo {
namespace {

// factor * code + sum with one rounding, which every instruction set must then do.
template <typename Floats>
inline Floats fused_multiply_add(Floats factor, Floats code, Floats sum) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Floats) == 64) return _mm512_fmadd_ps(factor, code, sum);
#endif
#if defined(__FMA__)
    if constexpr (sizeof(Floats) == 32) return _mm256_fmadd_ps(factor, code, sum);
#endif
    for (size_t i = 0; i < sizeof(Floats) / sizeof(float); ++i) {
        sum[i] = __builtin_fmaf(factor[i], code[i], sum[i]);
    }
    return sum;
}

// The codes in one slot of some bytes.
template <int bits>
inline typename Group<bits>::Floats codes_in(typename Group<bits>::Ints bytes, int slot) {
#if defined(__AVX512F__)
    if constexpr (bits == 4) {
        // A table of all sixteen, looked up by the low four bits of a lane, is faster than shifts and a
        // conversion.
        const __m512 codes = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
        return _mm512_permutexvar_ps((__m512i)(bytes >> (4 * slot)), codes);
    }
#endif
    // The highest slot's code already has its sign.
    const bool highest = slot == 8 / bits - 1;
    const auto code = highest ? bytes >> (8 - bits) : bytes << (32 - bits - slot * bits) >> (32 - bits);
    return __builtin_convertvector(code, typename Group<bits>::Floats);
}

// `block` is a constant, so that its loop is unrolled.
template <int bits, size_t block>
void accumulate_blocks(const uint8_t* __restrict codes, const bfloat16* __restrict scales, float weight,
                       size_t blocks, float* __restrict sum) {
    using G = Group<bits>;
    constexpr size_t bytes = block / G::slots;
    for (size_t b = 0; b < blocks; ++b, codes += bytes, sum += block) {
        const auto factor = weight * widen(scales[b]) - typename G::Floats{};  // x - 0 is x, -0 included
        // Other payloads' tiles come before this one's next: too far apart for the hardware to foresee.
#pragma GCC unroll 16
        for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(codes + line + kTile / G::slots);
#pragma GCC unroll 8
        for (size_t start = 0; start < bytes; start += G::lanes) {
            const auto packed = load_bytes<G::lanes>(codes + start);
#pragma GCC unroll 4
            for (size_t slot = 0; slot < G::slots; ++slot) {
                float* at = sum + slot * bytes + start;
                const auto code = codes_in<bits>(packed, static_cast<int>(slot));
                store(at, fused_multiply_add(factor, code, load<typename G::Floats>(at)));
            }
        }
    }
}

template <int bits>
void accumulate(const uint8_t* codes, const bfloat16* scales, float weight, size_t block, size_t blocks,
                float* sum) {
    switch (block) {
        case 32:
            return accumulate_blocks<bits, 32>(codes, scales, weight, blocks, sum);
        case 64:
            return accumulate_blocks<bits, 64>(codes, scales, weight, blocks, sum);
        case 128:
            return accumulate_blocks<bits, 128>(codes, scales, weight, blocks, sum);
        case 256:
            return accumulate_blocks<bits, 256>(codes, scales, weight, blocks, sum);
        case 512:
            return accumulate_blocks<bits, 512>(codes, scales, weight, blocks, sum);
        default:
            return accumulate_blocks<bits, kLargestBlock>(codes, scales, weight, blocks, sum);
    }
}

void accumulate_exact(const uint8_t* __restrict values, float weight, size_t N, float* __restrict sum) {
    for (size_t i = 0; i < N; ++i) {
        float value;
        __builtin_memcpy(&value, values + 4 * i, 4);
        sum[i] = __builtin_fmaf(weight, value, sum[i]);
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
        for (size_t slot = 0; slot < Group<bits>::slots; ++slot) {
            const uint8_t aligned = static_cast<uint8_t>(codes[i] << (8 - bits - slot * bits));
            found |= static_cast<uint8_t>(static_cast<uint8_t>(aligned >> (8 - bits)) == 1u << (bits - 1));
        }
    }
    return found != 0;
}

}  // namespace
}  // namespace fgrpo
