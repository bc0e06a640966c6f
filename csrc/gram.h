// Inner products of deltas, straight from the payloads of delta_codec.h. This header is the whole contract; it
// needs neither Python nor Torch.
//
// Payloads may differ in codec and block; they are not decoded as a whole. Memory, errors, bits and `threads`
// are as in delta_codec.h. A value that is NaN or infinite is an error, std::invalid_argument, that names the
// payload and the index of one such value; as it is found on the way, `out` may then hold anything.
//
// Bits. The product of two quantised payloads is a sum over runs of values that share both scales: the codes'
// product, an exact integer, times that of the scales, exact in float64. With bf16 or none among the two it is a
// sum of products of decoded values, exact in float64 too. Only additions round, and their order is fixed: runs
// (decoded values: eight sums, of every eighth value, for each 1024 values) in turn within parts of 65536
// values, then the parts. So an entry depends on its two payloads and on nothing else: not on the rest of the
// lists, nor on which of the two comes first.
#pragma once

#include <span>

#include "delta_codec.h"

namespace fgrpo {

// out[k * K + m] = the product of payloads k and m, K payloads of equal size: symmetric to the bit.
void gram(std::span<const Payload> payloads, std::span<double> out, int threads = 0);

// out[k * M + m] = the product of payload k and other m, K and M payloads of equal size.
void gram(std::span<const Payload> payloads, std::span<const Payload> others, std::span<double> out,
          int threads = 0);

// squares[k] = the product of payload k and itself: the diagonal of gram(), without the rest.
void squared_norms(std::span<const Payload> payloads, std::span<double> squares, int threads = 0);

}  // namespace fgrpo
