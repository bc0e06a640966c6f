#include <algorithm>
#include <atomic>
#include <cmath>

#include "client_stats.h"
#include "delta_codec.h"
#include "format.h"
#include "kernels.h"
#include "order.h"
#include "payloads.h"
#include "threads.h"

namespace fgrpo {
namespace {

constexpr std::size_t kStreamFrom = std::size_t{1}
                                    << 22;  // values; smaller results are better left in the caches
constexpr std::size_t kTermsPerThread = std::size_t{1} << 17;

// Tiles are shared out in at most this many parts, whose statistics are added in their order.
constexpr std::size_t kParts = 128;

// Bytes that the terms' order is first found by. Equal payloads would have to be compared to their end; whether more
// is needed shows while the sum is made, tile by tile, from codes that are then in the cache.
constexpr std::size_t kFirstBytes = 4096;

// The sum of the terms' values [first, first + N), in `sum`, which has room for whole blocks.
void sum_terms(const Kernels& simd, std::span<const Weighted> terms, std::size_t first, std::size_t N,
               float* sum) {
    Term batch[kTerms];
    for (std::size_t i = 0; i < terms.size();) {
        const Format format = terms[i].payload->format;
        std::size_t count = 0;
        for (; count < kTerms && i < terms.size() && terms[i].payload->format == format; ++i) {
            batch[count++] = term_at(*terms[i].payload, first, terms[i].weight);
        }
        simd.accumulate[static_cast<int>(format.codec)](batch, count, format.block, N, i == count, sum);
    }
}

// Returns whether the order is right: whether ties are equal. Where it is not, `out` and `stats` may hold anything.
// `stats`, if there are any, are in the caller's order.
bool weighted_sum(const Ordered& ordered, std::span<float> out, std::span<ClientStats> stats, int threads) {
    const std::span<const Weighted> terms = ordered.terms;
    const Kernels& simd = kernels();
    const std::size_t tiles = (out.size() + kTile - 1) / kTile;
    const std::size_t parts = std::min(tiles, kParts);
    std::vector<ClientStats> partial(stats.empty() ? 0 : parts * terms.size());
    std::atomic<bool> right = true;
    const auto sum_tile = [&](std::size_t tile, ClientStats* tile_stats) {
        if (!right.load(std::memory_order_relaxed)) return;
        alignas(64) float own[kTile];
        const std::size_t first = tile * kTile, N = std::min(kTile, out.size() - first);
        const bool streams = out.size() >= kStreamFrom;
        // A result that stays in the caches is summed up in its place, but for a tile that whole blocks would pass.
        float* const sum = streams || N < kTile ? own : out.data() + first;
        sum_terms(simd, terms, first, N, sum);
        if (streams) {
            simd.stream(sum, N, out.data() + first);
        } else if (sum == own) {
            std::copy_n(sum, N, out.data() + first);
        }
        if (tile_stats) add_client_stats(terms, first, {sum, N}, tile_stats);
        for (const std::size_t tie : ordered.ties) {
            if (!equal_blocks(*terms[tie - 1].payload, *terms[tie].payload, first, N)) right = false;
        }
    };
    const std::size_t tile_terms = kTile * terms.size(),
                      part_terms = tile_terms * (tiles / std::max(parts, std::size_t{1}));
    if (stats.empty()) {
        parallel_for(tiles, 1 + kTermsPerThread / tile_terms, threads,
                     [&](std::size_t begin, std::size_t end) {
                         for (std::size_t tile = begin; tile < end; ++tile) sum_tile(tile, nullptr);
                         simd.fence();
                     });
        return right;
    }
    parallel_for(
        parts, 1 + kTermsPerThread / (1 + part_terms), threads, [&](std::size_t begin, std::size_t end) {
            for (std::size_t part = begin; part < end; ++part) {
                for (std::size_t tile = tiles * part / parts; tile < tiles * (part + 1) / parts; ++tile) {
                    sum_tile(tile, partial.data() + part * terms.size());
                }
            }
            simd.fence();
        });
    for (std::size_t k = 0; k < terms.size(); ++k) {
        ClientStats& total = stats[terms[k].place] = {};
        for (std::size_t part = 0; part < parts; ++part) {
            total.squared_norm += partial[part * terms.size() + k].squared_norm;
            total.dot_with_mean += partial[part * terms.size() + k].dot_with_mean;
        }
    }
    return right;
}

void weighted_sum(std::span<const Payload> payloads, std::span<const float> weights, std::span<float> out,
                  std::span<ClientStats> stats, int threads) {
    if (weighted_sum(in_order(payloads, weights, kFirstBytes), out, stats, threads)) return;
    weighted_sum(in_order(payloads, weights, SIZE_MAX), out, stats, threads);
}

void require_apart(const std::string& where, const Payload& payload, std::span<const float> out) {
    if (overlap(payload.codes, out) || overlap(payload.scales, out)) {
        throw std::invalid_argument(where + " shares memory with out, which is overwritten");
    }
}

void require_arguments(std::span<const Payload> payloads, std::span<const float> weights,
                       std::span<const float> out) {
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
}

}  // namespace

void decode(const Payload& payload, std::span<float> out, int threads) {
    require_lengths("decode", payload);
    if (out.size() != payload.size) {
        throw std::invalid_argument("decode: out has " + std::to_string(out.size()) +
                                    " values, the payload " + std::to_string(payload.size));
    }
    require_apart("decode: the payload", payload, out);
    weighted_sum(Ordered{{{&payload, 1.0f, 0}}, {}}, out, {}, threads);
}

void aggregate(std::span<const Payload> payloads, std::span<const float> weights, std::span<float> out,
               int threads) {
    require_arguments(payloads, weights, out);
    weighted_sum(payloads, weights, out, {}, threads);
}

void aggregate_with_stats(std::span<const Payload> payloads, std::span<const float> weights,
                          std::span<float> out, std::span<ClientStats> stats, int threads) {
    require_arguments(payloads, weights, out);
    if (stats.size() != payloads.size()) {
        throw std::invalid_argument("aggregate: " + std::to_string(payloads.size()) +
                                    " payloads but room for " + std::to_string(stats.size()) + " statistics");
    }
    weighted_sum(payloads, weights, out, stats, threads);
}

}  // namespace fgrpo
