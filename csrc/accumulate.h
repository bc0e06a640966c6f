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
template <int bits, size_t lanes>
inline Vector<float, lanes> codes_in(Vector<int, lanes> bytes, int slot) {
#if defined(__AVX512F__)
    // A table of all codes, looked up by the low bits of a lane, is faster than shifts and a conversion.
    if constexpr (bits == 4) {
        const __m512 codes = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
        return _mm512_permutexvar_ps((__m512i)(bytes >> (4 * slot)), codes);
    }
    if constexpr (bits == 2 && lanes == 16) {
        const __m512 codes = {0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1};
        return _mm512_permutexvar_ps((__m512i)(bytes >> (2 * slot)), codes);
    }
#endif
    // The highest slot's code already has its sign.
    const bool highest = slot == 8 / bits - 1;
    const auto code = highest ? bytes >> (8 - bits) : bytes << (32 - bits - slot * bits) >> (32 - bits);
    return __builtin_convertvector(code, Vector<float, lanes>);
}

// Sums that stay in registers while the terms are added: half of the registers there are.
#if defined(__AVX512F__)
inline constexpr size_t kSums = 16;
#else
inline constexpr size_t kSums = 8;
#endif

// Adds the terms to the values of `groups` groups (see Group), the first of which is group `first` of the
// tile. `block` and `groups` are constants, so that every loop but the one over the terms is unrolled.
template <int bits, size_t block, size_t groups>
inline void accumulate_groups(const Term* terms, size_t count, const float (*factors)[kTileBlocks],
                              size_t first, bool fresh, float* __restrict sum) {
    using G = Group<bits, block>;
    constexpr size_t bytes = block / G::slots, groups_a_block = bytes / G::lanes;
    // Where in the tile a group's codes of one slot go.
    const auto place = [&](size_t group, size_t slot) {
        const size_t index = first + group;
        return sum + index / groups_a_block * block + slot * bytes + index % groups_a_block * G::lanes;
    };
    typename G::Floats sums[groups * G::slots];
    if (fresh) {
#pragma GCC unroll 16
        for (size_t i = 0; i < groups * G::slots; ++i) sums[i] = -typename G::Floats{};
    } else {
#pragma GCC unroll 16
        for (size_t i = 0; i < groups * G::slots; ++i) {
            sums[i] = load<typename G::Floats>(place(i / G::slots, i % G::slots));
        }
    }
    for (size_t k = 0; k < count; ++k) {
        const uint8_t* codes = terms[k].codes + first * G::lanes;
        const float* factor = factors[k] + first / groups_a_block;
        // Tiles of other payloads come before this one's next: too far apart for the hardware to foresee. To
        // the second-level cache, as the first has too few lines in flight to wait for memory.
#pragma GCC unroll 16
        for (size_t line = 0; line < groups * G::lanes; line += 64) {
            __builtin_prefetch(codes + line + kTile / G::slots, 0, 2);
        }
#pragma GCC unroll 16
        for (size_t group = 0; group < groups; ++group) {
            const auto packed = load_bytes<G::lanes>(codes + group * G::lanes);
            const auto factors_of_block = factor[group / groups_a_block] - typename G::Floats{};
#pragma GCC unroll 4
            for (size_t slot = 0; slot < G::slots; ++slot) {
                auto& total = sums[group * G::slots + slot];
                total = fused_multiply_add(factors_of_block,
                                           codes_in<bits, G::lanes>(packed, static_cast<int>(slot)), total);
            }
        }
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < groups * G::slots; ++i) store(place(i / G::slots, i % G::slots), sums[i]);
}

template <int bits, size_t block>
void accumulate_blocks(const Term* terms, size_t count, size_t N, bool fresh, float* sum) {
    using G = Group<bits, block>;
    constexpr size_t groups_a_block = block / G::slots / G::lanes;
    const size_t blocks = (N + block - 1) / block;
    float factors[kTerms][kTileBlocks];
    for (size_t k = 0; k < count; ++k) {
        for (size_t b = 0; b < blocks; ++b) factors[k][b] = terms[k].weight * widen(terms[k].scales[b]);
        __builtin_prefetch(terms[k].scales + kTile / block);
    }
    constexpr size_t at_once = kSums / G::slots;
    const size_t groups = blocks * groups_a_block;
    size_t first = 0;
    for (; first + at_once <= groups; first += at_once) {
        accumulate_groups<bits, block, at_once>(terms, count, factors, first, fresh, sum);
    }
    for (; first < groups; ++first)
        accumulate_groups<bits, block, 1>(terms, count, factors, first, fresh, sum);
}

template <int bits>
void accumulate_codes(const Term* terms, size_t count, size_t block, size_t N, bool fresh, float* sum) {
    switch (block) {
        case 32:
            return accumulate_blocks<bits, 32>(terms, count, N, fresh, sum);
        case 64:
            return accumulate_blocks<bits, 64>(terms, count, N, fresh, sum);
        case 128:
            return accumulate_blocks<bits, 128>(terms, count, N, fresh, sum);
        case 256:
            return accumulate_blocks<bits, 256>(terms, count, N, fresh, sum);
        case 512:
            return accumulate_blocks<bits, 512>(terms, count, N, fresh, sum);
        default:
            return accumulate_blocks<bits, kLargestBlock>(terms, count, N, fresh, sum);
    }
}

// Values as they are, float32 or bfloat16, of any alignment.
template <typename Value>
void accumulate_values(const Term* terms, size_t count, size_t, size_t N, bool fresh, float* __restrict sum) {
    if (fresh) {
        for (size_t i = 0; i < N; ++i) sum[i] = -0.0f;
    }
    for (size_t k = 0; k < count; ++k) {
        const uint8_t* __restrict values = terms[k].codes;
        const float weight = terms[k].weight;
        for (size_t i = 0; i < N; ++i) {
            Value value;
            __builtin_memcpy(&value, values + sizeof(Value) * i, sizeof(Value));
            sum[i] = __builtin_fmaf(weight, widen(value), sum[i]);
        }
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

}  // namespace
}  // namespace fgrpo
