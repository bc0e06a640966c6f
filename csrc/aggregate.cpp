#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>

#include "delta_codec.h"
#include "format.h"
#include "kernels.h"
#include "threads.h"

namespace fgrpo {
namespace {

constexpr std::size_t kStreamFrom = std::size_t{1}
                                    << 22;  // values; smaller results are better left in the caches
constexpr std::size_t kTermsPerThread = std::size_t{1} << 17;

// Tiles are shared out in at most this many parts, whose statistics are added in their order.
constexpr std::size_t kParts = 128;

struct Weighted {
    const Payload* payload;
    float weight;
    std::size_t place;  // in the caller's list
};

template <typename T>
int compare_bytes(std::span<const T> a, std::span<const T> b) {
    return a.empty() || a.data() == b.data() ? 0 : std::memcmp(a.data(), b.data(), a.size_bytes());
}

// The order of summation, see aggregate(). Terms that compare equal are equal. Formats come first, so that
// terms of one format follow each other.
bool comes_before(const Weighted& a, const Weighted& b) {
    const auto key = [](const Weighted& term) {
        return std::tuple(term.payload->format.codec, term.payload->format.block,
                          std::bit_cast<std::uint32_t>(term.weight));
    };
    if (key(a) != key(b)) return key(a) < key(b);
    const int scales = compare_bytes(a.payload->scales, b.payload->scales);
    return scales != 0 ? scales < 0 : compare_bytes(a.payload->codes, b.payload->codes) < 0;
}

std::vector<Weighted> in_order(std::span<const Payload> payloads, std::span<const float> weights) {
    std::vector<Weighted> terms;
    terms.reserve(payloads.size());
    for (std::size_t k = 0; k < payloads.size(); ++k) terms.push_back({&payloads[k], weights[k], k});
    std::sort(terms.begin(), terms.end(), comes_before);
    return terms;
}

// Adds the terms' values [first, first + N) to `sum`.
void add_terms(const Kernels& simd, std::span<const Weighted> terms, std::size_t first, std::size_t N,
               float* sum) {
    Term batch[kTerms];
    for (std::size_t i = 0; i < terms.size();) {
        const Format format = terms[i].payload->format;
        const std::size_t codes = code_offset(format, first);
        const std::size_t scales = has_scales(format.codec) ? first / format.block : 0;
        std::size_t count = 0;
        for (; count < kTerms && i < terms.size() && terms[i].payload->format == format; ++i) {
            const Payload& payload = *terms[i].payload;
            batch[count++] = {payload.codes.data() + codes, payload.scales.data() + scales, terms[i].weight};
        }
        simd.accumulate[static_cast<int>(format.codec)](batch, count, format.block, N, sum);
    }
}

// Adds what the tile says of each term to `stats`, in the terms' order. `mean` has kTile values.
void add_moments(const Kernels& simd, std::span<const Weighted> terms, std::size_t first, std::size_t N,
                 float* mean, ClientStats* stats) {
    alignas(64) float values[kTile];
    const std::size_t padded = (N + 15) / 16 * 16;
    std::fill(mean + N, mean + padded, 0.0f);
    for (std::size_t k = 0; k < terms.size(); ++k) {
        const Weighted alone{terms[k].payload, 1.0f, 0};
        std::fill(values, values + kTile, -0.0f);
        add_terms(simd, {&alone, 1}, first, N, values);
        std::fill(values + N, values + padded, 0.0f);
        simd.moments(values, mean, padded, &stats[k].squared_norm, &stats[k].dot_with_mean);
    }
}

// `stats`, if there are any, are in the caller's order.
void weighted_sum(std::span<const Weighted> terms, std::span<float> out, std::span<ClientStats> stats,
                  int threads) {
    const Kernels& simd = kernels();
    const std::size_t tiles = (out.size() + kTile - 1) / kTile;
    const std::size_t parts = std::min(tiles, kParts);
    std::vector<ClientStats> partial(stats.empty() ? 0 : parts * terms.size());
    const auto sum_tile = [&](std::size_t tile, ClientStats* tile_stats) {
        alignas(64) float sum[kTile];
        const std::size_t first = tile * kTile, N = std::min(kTile, out.size() - first);
        std::fill(sum, sum + kTile, -0.0f);  // -0 + x is x for every x, -0 included
        add_terms(simd, terms, first, N, sum);
        if (out.size() >= kStreamFrom) {
            simd.stream(sum, N, out.data() + first);
        } else {
            std::copy_n(sum, N, out.data() + first);
        }
        if (tile_stats) add_moments(simd, terms, first, N, sum, tile_stats);
    };
    const std::size_t tile_terms = kTile * terms.size(),
                      part_terms = tile_terms * (tiles / std::max(parts, std::size_t{1}));
    if (stats.empty()) {
        parallel_for(tiles, 1 + kTermsPerThread / tile_terms, threads,
                     [&](std::size_t begin, std::size_t end) {
                         for (std::size_t tile = begin; tile < end; ++tile) sum_tile(tile, nullptr);
                         simd.fence();
                     });
        return;
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
    const Weighted alone{&payload, 1.0f, 0};
    weighted_sum({&alone, 1}, out, {}, threads);
}

void aggregate(std::span<const Payload> payloads, std::span<const float> weights, std::span<float> out,
               int threads) {
    require_arguments(payloads, weights, out);
    weighted_sum(in_order(payloads, weights), out, {}, threads);
}

void aggregate_with_stats(std::span<const Payload> payloads, std::span<const float> weights,
                          std::span<float> out, std::span<ClientStats> stats, int threads) {
    require_arguments(payloads, weights, out);
    if (stats.size() != payloads.size()) {
        throw std::invalid_argument("aggregate: " + std::to_string(payloads.size()) +
                                    " payloads but room for " + std::to_string(stats.size()) + " statistics");
    }
    weighted_sum(in_order(payloads, weights), out, stats, threads);
}

}  // namespace fgrpo
