// The inner loops, which work on one tile at a time: small enough to stay in the first-level cache.
// kernels.cpp is compiled once per instruction set; simd.cpp picks one table when the program runs.
//
// Legend: N values of a tile. Buffers named here have room for a whole tile.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fgrpo {

enum class bfloat16 : std::uint16_t;
struct GramKernels;
struct RobustKernels;
struct SoftmaxKernels;
struct UpdateKernels;

// A multiple of the largest block; its sum (8 KB) and the next codes fit in the cache together.
inline constexpr std::size_t kTile = 2048;
inline constexpr std::size_t kSmallestBlock = 32;
inline constexpr std::size_t kLargestBlock = 1024;
inline constexpr std::size_t kTileBlocks = kTile / kSmallestBlock;  // at most

// The bits of 2^127. Beyond it a scale rounded up could decode to infinity; as integers, the bits of larger
// numbers, of infinity and of NaN all compare greater.
inline constexpr std::uint32_t kLargestMagnitude = 0x7f000000u;

// A payload's part of a tile, and its weight.
struct Term {
    const std::uint8_t* codes;
    const bfloat16* scales;
    float weight;
};

// The most terms that one call adds up.
inline constexpr std::size_t kTerms = 8;

// A delta that is not in memory: delta[i] = (updated[i] - base[i]) + residual[i]; base and residual may be null.
struct Source {
    const void* updated;
    const void* base;
    const float* residual;
};

// A block of a delta, and its largest magnitude.
struct Block {
    const float* delta;
    std::uint32_t peak;
};

// Values [at, at + N) of a delta, N at most kLargestBlock, as blocks, the last padded with zeros: in `buffer`,
// which has room for kLargestBlock values, unless they are in memory as they are.
using ReadBlocks = void(const Source& source, std::size_t at, std::size_t N, std::size_t block, float* buffer,
                        Block* blocks);

// How a tile is quantised, and where to.
struct Quantised {
    std::size_t block;
    bool mse;         // which of the two rules of delta_codec.h gives the scales
    bool stochastic;  // with Philox's bits for `seed`, as below, from value `first` on
    std::uint64_t seed, first;
    std::uint8_t* codes;
    bfloat16* scales;
    float* error;  // delta - decoded, where not null; may be the source's residual
};

// [updated][base]: 0 float32, 1 bfloat16. Tables with [codec] are indexed by Codec's value; those of three entries
// are for the codecs with scales. Magnitudes are float32 bits.
struct Kernels {
    const char* name;

    // delta[i] for i < N; and the largest magnitude among them.
    void (*delta[2][2])(const Source& source, std::size_t N, float* delta);
    std::uint32_t (*peak[2][2])(const Source& source, std::size_t N);

    ReadBlocks* read[2][2];

    // Scales, codes and errors of the blocks of N values, which `read` reads. Returns the largest magnitude; ends
    // early at a block with one beyond kLargestMagnitude. [codec]
    std::uint32_t (*quantise[3])(ReadBlocks* read, const Source& source, std::size_t N, const Quantised& to);

    // random[i] = Philox4x32-10's 16 bits for value first + i, `first` a multiple of 8. May write on to the next
    // multiple of 128.
    void (*random_bits)(std::uint64_t seed, std::uint64_t first, std::size_t N, std::uint16_t* random);

    // What rounds to bfloat16, for i < N; `random` null means to nearest. Where `error` is not null, error[i] =
    // delta[i] - decoded.
    void (*round_to_bfloat16)(const float* delta, const std::uint16_t* random, std::size_t N,
                              std::uint8_t* codes, float* error);

    // sum[i] = fma(weight * scale, code, sum[i]) for each of `count` terms in turn, over the whole blocks that
    // hold N values; for bf16 and none, fma(weight, value, sum[i]) for i < N. Where `fresh`, sum[i] is not read but
    // taken for -0, to which any x adds to x, -0 included. [codec]
    void (*accumulate[5])(const Term* terms, std::size_t count, std::size_t block, std::size_t N, bool fresh,
                          float* sum);

    // squared_norm += values * values and dot += values * mean over i < N, exact products in float64. Sixteen partial
    // sums, each over every sixteenth i, are added in pairs. N is a multiple of 16.
    void (*moments)(const float* values, const double* mean, std::size_t N, double* squared_norm,
                    double* dot);

    // The same of a term's N decoded values, whole blocks, by its codes. A block's products of codes with the mean are
    // added up in float32, in sixteen sums (eight of a block of eight bytes); all else is exact or in float64. Where a
    // sum passes float32 the dot product is not finite. Returns the bits of the largest magnitude of a scale. [codec]
    std::uint32_t (*code_moments[3])(const Term& term, std::size_t block, std::size_t N, const float* mean,
                                     double* squared_norm, double* dot);

    // out[i] = tile[i], past the caches where out is aligned to 64 bytes. Needs fence() before another thread
    // reads.
    void (*stream)(const float* tile, std::size_t N, float* out);
    void (*fence)();

    // The loops of other files, for the same instruction set.
    const GramKernels& gram;
    const RobustKernels& robust;
    const SoftmaxKernels& softmax;
    const UpdateKernels& update;
};

// The table for the instruction set in use (see use_simd).
const Kernels& kernels();

}  // namespace fgrpo
