// The delta codec: a flat float32 model delta as 8, 4 or 2 bits a parameter, and the weighted mean of many
// such payloads. This header is the whole contract; it needs neither Python nor Torch.
//
// Format. A delta of `size` values is cut into blocks of `block` values (a power of two, 32 to 1024). A block
// has one scale and one code a value; value = code * scale, which is exact in float32.
//
//   codec   code range   bytes a block   byte i of a block holds, from its low bits up, the codes of values
//   int8    -128..127    block           i
//   int4    -8..7        block / 2       i, i + block/2
//   int2    -2..1        block / 4       i, i + block/4, i + block/2, i + 3*block/4
//   bf16    rounded      2 a value       little-endian bfloat16, unpadded, without scales or blocks
//   none    exact        4 a value       little-endian float32, unpadded, without scales or blocks
//
// Codes are two's complement. The last block is padded with codes of 0. A scale is a bfloat16; where it would
// be subnormal (magnitudes below 1.5e-36 for int8), it and the block's codes are 0. So values from 1e-30 to
// 1e30 keep the same relative error. A scale is negative where the lowest code, which has no positive
// counterpart, is to stand for a positive value, and nowhere else.
//
// Memory. Callers own every span; nothing is kept after a call. Outputs must have exactly the size named here
// and may not overlap the inputs. Spans of float and bfloat16 must be aligned to their type. No function
// allocates memory in proportion to `size`.
//
// Errors. Wrong sizes, formats, weights and overlaps throw std::invalid_argument; data that cannot be encoded
// throws NotEncodable. Every argument is checked before the first byte of output is written, so after a throw
// `residual` and `out` are as they were (`codes` and `scales` may hold anything).
//
// Bits. float32 arithmetic in the default rounding mode, whatever the caller's, and in one order: the result
// depends neither on the thread count nor on the instruction set. `threads` is the most threads to use; 0
// means every core that the process may run on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace fgrpo {

enum class bfloat16 : std::uint16_t {};  // the upper half of a float32's bits

enum class Codec { int8, int4, int2, bf16, none };
enum class Rounding { nearest, stochastic };
enum class Scaling { absmax, mse };

struct Format {
    Codec codec;
    std::size_t block;
    bool operator==(const Format&) const = default;
};

struct Payload {
    Format format;
    std::size_t size;  // values, without padding
    std::span<const std::uint8_t> codes;
    std::span<const bfloat16> scales;
};

using Values = std::variant<std::span<const float>, std::span<const bfloat16>>;

// A value to encode is NaN, infinite, or larger than 2^127 in magnitude. `index` is the first such value's.
struct NotEncodable : std::domain_error {
    NotEncodable(const std::string& what, std::size_t index) : std::domain_error(what), index(index) {}
    std::size_t index;
};

// "int8" -> Codec::int8, and so on; an unknown name is an error that lists the known ones.
Codec codec_named(std::string_view name);
Rounding rounding_named(std::string_view name);
Scaling scaling_named(std::string_view name);

// The lengths of Payload::codes and Payload::scales for `size` values.
std::size_t code_bytes(Format format, std::size_t size);
std::size_t scale_count(Format format, std::size_t size);

// Quantises delta = updated - base + residual in one pass over memory. `base` is optional. An empty
// `residual` means none; otherwise it has updated's size and on return holds delta - decoded, to be passed to
// the next call (error feedback); a first reading then finds values that cannot be encoded.
//
// Scaling. absmax: the block's largest magnitude over the largest code, rounded up; codes are then symmetric.
// mse: of a few smaller and larger scales (docs/codec.md), the one with the least squared error.
//
// Rounding. The code is the integer nearest to delta * (1/scale), each operation rounded to float32, ties to even;
// where scale is 0 it is 0. With absmax also stochastic: the integer nearest to that plus (r | 1) / 2^16, ties to
// even, where r in [-2^15, 2^15) is the 16-bit integer that value i has of Philox4x32-10 with counter i / 8 and key
// `seed`: word i / 2 % 4, its lower half for even i. bf16 rounds to the nearest bfloat16, ties to even; or adds r as
// an unsigned integer to the lower half of the value's bits and drops that half. `none` rounds nothing.
void encode(const Values& updated, const std::optional<Values>& base, std::span<float> residual,
            Format format, Rounding rounding, std::uint64_t seed, std::span<std::uint8_t> codes,
            std::span<bfloat16> scales, int threads = 0, Scaling scaling = Scaling::absmax);

// out[i] = code * scale, whatever the bytes; see check().
void decode(const Payload& payload, std::span<float> out, int threads = 0);

// sum = fma(weights[k] * scale, code, sum) for each payload, from a sum of -0, in one pass over memory; for
// bf16 and none, fma(weights[k], value, sum). Payloads must have equal sizes; their codecs and blocks may
// differ. Weights must be finite; they need not sum to 1. Terms are added in the order of codec, block,
// weight, scales and codes (as bytes), so the order of the list changes no bit. Where terms are equal in their
// first bytes and differ later, the work is done twice.
void aggregate(std::span<const Payload> payloads, std::span<const float> weights, std::span<float> out,
               int threads = 0);

// As aggregate(), and stats[k] about payload k of the list, in float64; the same bits for any order, too. Products of
// codes with `out` are added up in float32 within a block: of 64 values at most six roundings follow each other.
struct ClientStats {
    double squared_norm;   // of the decoded delta
    double dot_with_mean;  // of the decoded delta and `out`
};
void aggregate_with_stats(std::span<const Payload> payloads, std::span<const float> weights,
                          std::span<float> out, std::span<ClientStats> stats, int threads = 0);

// Throws std::invalid_argument, naming the first fault, unless scales are finite, not -0, not subnormal and
// negative only in blocks with the lowest code, values of bf16 and none at most 2^127 in magnitude, others
// below 2^128, and padding is 0. Whatever encode() writes passes, and whatever passes decodes to finite values.
void check(const Payload& payload, int threads = 0);

// The instruction sets compiled in that this machine can run, worst first; and which one calls use. The best
// is chosen at first use; results are the same with each. use_simd returns the previous one; an unknown name
// throws.
std::vector<std::string> simd_levels();
std::string use_simd(const std::string& name);

}  // namespace fgrpo
