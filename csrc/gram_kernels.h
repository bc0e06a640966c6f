// The inner loops of gram.cpp, compiled once per instruction set like those of kernels.h.
//
// They work on a chunk of values of up to kRows payloads, rows, at a time: their codes, or their values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace fgrpo {

inline constexpr std::size_t kRows = 32;
inline constexpr std::size_t kChunk = kLargestBlock;
inline constexpr std::size_t kPackedBytes = 32;  // of a block, at least, to be interleaved as it is packed
inline constexpr std::size_t kChunkRuns = kChunk / kSmallestBlock;  // at most

// Rows' part of a chunk, cut into runs of values that share a scale.
struct CodeRows {
    const std::int16_t (*codes)[4 * kChunk];  // of each four rows, interleaved
    const float (*scales)[kRows];             // [run][row]
    std::size_t count;  // of rows; what lies beyond is read up to the next multiple of four
};

struct ValueRows {
    const float (*values)[kChunk];
    std::size_t count;
};

struct GramKernels {
    // The codes of the whole blocks that hold N values, in order. [codec]
    void (*unpack[3])(const std::uint8_t* codes, std::size_t block, std::size_t N, std::int8_t* unpacked);

    // Four rows' codes as add_code_products takes them; N a multiple of the block, which takes a multiple of
    // kPackedBytes. [codec]
    void (*interleave[3])(const std::uint8_t* const (&rows)[4], std::size_t block, std::size_t N,
                          std::int16_t* interleaved);

    // sums[i][j] += the product of rows i and j, run by run. `upper`: only j >= i is needed.
    void (*add_code_products)(const CodeRows& rows, const CodeRows& columns, bool upper, std::size_t run,
                              std::size_t runs, double (*sums)[kRows]);

    // The same of values, N rounded up to eight: eight sums, of every eighth value, are added in pairs, and what
    // they come to is added to sums[i][j].
    void (*add_value_products)(const ValueRows& rows, const ValueRows& columns, bool upper, std::size_t N,
                               double (*sums)[kRows]);

    // sum += a row's product with itself, to the same bits.
    void (*add_code_squares)(const std::int8_t* codes, const float* scales, std::size_t run, std::size_t runs,
                             double* sum);
    void (*add_value_squares)(const float* values, std::size_t N, double* sum);
};

}  // namespace fgrpo
