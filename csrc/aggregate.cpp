#include <algorithm>
#include <cmath>

#include "delta_codec.h"
#include "format.h"
#include "kernels.h"
#include "threads.h"

namespace fgrpo {
namespace {

constexpr std::size_t kStreamFrom = std::size_t{1}
                                    << 22;  // values; smaller results are better left in the caches
constexpr std::size_t kTermsPerThread = std::size_t{1} << 17;

// sum[i] += weight * payload's value first + i, for i < N.
void accumulate(const Kernels& simd, const Payload& payload, float weight, std::size_t first, std::size_t N,
                float* sum) {
    const Format format = payload.format;
    const std::uint8_t* codes = payload.codes.data() + code_offset(format, first);
    if (format.codec == Codec::none) {
        simd.accumulate_exact(codes, weight, N, sum);
    } else {
        simd.accumulate[static_cast<int>(format.codec)](codes, payload.scales.data() + first / format.block,
                                                        weight, format.block, blocks_of(format, N), sum);
    }
}

void weighted_sum(std::span<const Payload> payloads, std::span<const float> weights, std::span<float> out,
                  int threads) {
    const Kernels& simd = kernels();
    const std::size_t tiles = (out.size() + kTile - 1) / kTile;
    const std::size_t grain = 1 + kTermsPerThread / (kTile * payloads.size());
    parallel_for(tiles, grain, threads, [&](std::size_t begin, std::size_t end) {
        alignas(64) float sum[kTile];
        for (std::size_t tile = begin; tile < end; ++tile) {
            const std::size_t first = tile * kTile, N = std::min(kTile, out.size() - first);
            std::fill(sum, sum + kTile, -0.0f);  // -0 + x is x for every x, -0 included
            for (std::size_t k = 0; k < payloads.size(); ++k) {
                accumulate(simd, payloads[k], weights[k], first, N, sum);
            }
            if (out.size() >= kStreamFrom) {
                simd.stream(sum, N, out.data() + first);
            } else {
                std::copy_n(sum, N, out.data() + first);
            }
        }
        simd.fence();
    });
}

void require_apart(const std::string& where, const Payload& payload, std::span<const float> out) {
    if (overlap(payload.codes, out) || overlap(payload.scales, out)) {
        throw std::invalid_argument(where + " shares memory with out, which is overwritten");
    }
}

}  // namespace

void decode(const Payload& payload, std::span<float> out, int threads) {
    require_lengths("decode", payload);
    if (out.size() != payload.size) {
        throw std::invalid_argument("decode: out has " + std::to_string(out.size()) +
                                    " values, the payload " + std::to_string(payload.size));
    }
    require_apart("decode: the payload", payload, out);
    const float one = 1.0f;
    weighted_sum({&payload, 1}, {&one, 1}, out, threads);
}

void aggregate(std::span<const Payload> payloads, std::span<const float> weights, std::span<float> out,
               int threads) {
    if (payloads.empty()) throw std::invalid_argument("aggregate: no payloads; did every client fail?");
    if (weights.size() != payloads.size()) {
        throw std::invalid_argument("aggregate: " + std::to_string(payloads.size()) + " payloads but " +
                                    std::to_string(weights.size()) + " weights");
    }
    for (std::size_t k = 0; k < payloads.size(); ++k) {
        const std::string where = "aggregate: payload " + std::to_string(k);
        if (payloads[k].size != out.size()) {
            throw std::invalid_argument(where + " has " + std::to_string(payloads[k].size) +
                                        " parameters, expected " + std::to_string(out.size()) +
                                        "; was it made from another model?");
        }
        require_lengths(where, payloads[k]);
        require_apart(where, payloads[k], out);
        if (!std::isfinite(weights[k])) {
            throw std::invalid_argument("aggregate: weight " + std::to_string(k) + " is " + text(weights[k]) +
                                        "; weights must be finite float32 numbers");
        }
    }
    weighted_sum(payloads, weights, out, threads);
}

}  // namespace fgrpo
