// Means that a hostile client cannot carry away, straight from the payloads of delta_codec.h. This header is
// the whole contract; it needs neither Python nor Torch.
//
// Payloads may differ in codec and block; they are not decoded as a whole. Memory, errors, bits and `threads`
// are as in delta_codec.h, with two additions. The results do not depend on the order of the payloads either.
// And a value that is NaN or infinite is an error, std::invalid_argument, that names the payload and the index
// of one such value; as it is found on the way, `out` may then hold anything.
#pragma once

#include <cstddef>
#include <span>

#include "delta_codec.h"

namespace fgrpo {

// The most payloads that trimmed_mean() takes.
inline constexpr std::size_t kMostSorted = 64;

// out[i] = the mean of what is left of the K values of coordinate i without the `trim` smallest and the `trim`
// largest. The kept values are added in ascending order in float32 (-0 before 0), then divided by their number
// K - 2*trim, which must be 1 or more. With trim = (K - 1) / 2 this is the median. A sum beyond float32 is an
// infinity, which takes kept values of 2^121 or more. Works in tiles of K * 8 KB or less a thread.
void trimmed_mean(std::span<const Payload> payloads, std::size_t trim, std::span<float> out, int threads = 0);

// norms[k] = the L2 norm of payload k's values, exact but for the roundings of a float64 sum in fixed order.
void norms(std::span<const Payload> payloads, std::span<double> norms, int threads = 0);

}  // namespace fgrpo
