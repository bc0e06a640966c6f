// A chunk of a payload, taken apart for gram.cpp: the N values from `first` on, at most kChunk, as runs of codes that share
// a scale, or decoded.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "format.h"
#include "gram_kernels.h"
#include "kernels.h"
#include "payloads.h"

namespace fgrpo {

inline float widen(bfloat16 scale) { return std::bit_cast<float>(static_cast<std::uint32_t>(scale) << 16); }

// The codes of the runs, zeros after N of them: in `buffer`, unless they lie in the payload as they are.
inline const std::int8_t* codes_at(const GramKernels& simd, const Payload& payload, std::size_t first,
                                   std::size_t N, std::size_t run, std::int8_t* buffer) {
    const Format format = payload.format;
    const std::uint8_t* packed = payload.codes.data() + code_offset(format, first);
    const std::size_t past = (N + run - 1) / run * run;
    if (format.codec == Codec::int8 && past == N) return reinterpret_cast<const std::int8_t*>(packed);
    simd.unpack[static_cast<int>(format.codec)](packed, format.block, N, buffer);
    std::fill(buffer + N, buffer + past, std::int8_t{0});
    return buffer;
}

// The codes of four payloads whose blocks are of one length, interleaved, zeros after N of them; they may pass through `four`.
inline void take_codes(const GramKernels& simd, const Payload* const (&payloads)[4], std::size_t first,
                       std::size_t N, std::size_t run, std::int8_t (&four)[4][kChunk],
                       std::int16_t* interleaved) {
    const Format format = payloads[0]->format;
    const bool alike = std::all_of(payloads, payloads + 4,
                                   [&](const Payload* other) { return other->format.codec == format.codec; });
    const bool packed =
        alike && N % format.block == 0 && code_offset(format, format.block) % kPackedBytes == 0;
    const std::uint8_t* rows[4];
    for (std::size_t i = 0; i < 4; ++i) {
        rows[i] =
            packed
                ? payloads[i]->codes.data() + code_offset(format, first)
                : reinterpret_cast<const std::uint8_t*>(codes_at(simd, *payloads[i], first, N, run, four[i]));
    }
    const Codec as = packed ? format.codec : Codec::int8;
    simd.interleave[static_cast<int>(as)](rows, format.block, (N + run - 1) / run * run, interleaved);
}

// The runs' scales, `stride` apart.
inline void take_scales(const Payload& payload, std::size_t first, std::size_t N, std::size_t run,
                        float* scales, std::size_t stride) {
    const int shift = std::countr_zero(payload.format.block);
    for (std::size_t b = 0; b * run < N; ++b)
        scales[b * stride] = widen(payload.scales[(first + b * run) >> shift]);
}

// The values, and zeros after them up to a multiple of eight.
inline void take_values(const Payload& payload, std::size_t first, std::size_t N, float* values) {
    const Format format = payload.format;
    const Term term = term_at(payload, first, 1.0f);
    kernels().accumulate[static_cast<int>(format.codec)](&term, 1, format.block, N, true, values);
    std::fill(values + N, values + (N + 7) / 8 * 8, 0.0f);
}

}  // namespace fgrpo
