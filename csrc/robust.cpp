#include "robust.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "format.h"
#include "gram.h"
#include "kernels.h"
#include "payloads.h"
#include "robust_kernels.h"
#include "threads.h"

namespace fgrpo {

namespace {

constexpr std::size_t kSortedValues = std::size_t{1} << 16;  // of a tile, all payloads together: 256 KB
constexpr std::size_t kLongestTile = std::size_t{1} << 13;

void lower(std::atomic<std::size_t>& lowest, std::size_t value) {
    std::size_t seen = lowest.load();
    while (value < seen && !lowest.compare_exchange_weak(seen, value)) {
    }
}

// Batcher's odd-even merge sort for any K (Knuth, volume 3, 5.2.2 M), without the comparators that no row of
// [trim, K - trim) and neither of the extremes, which show values that are not finite, depends on.
std::vector<Comparator> sorting_network(std::size_t K, std::size_t trim) {
    std::vector<Comparator> network;
    for (std::size_t merged = 1; merged < K; merged *= 2) {
        for (std::size_t step = merged; step >= 1; step /= 2) {
            for (std::size_t start = step % merged; start + step < K; start += 2 * step) {
                for (std::size_t low = start; low < std::min(start + step, K - step); ++low) {
                    if (low / (2 * merged) != (low + step) / (2 * merged)) continue;
                    network.push_back(
                        {static_cast<std::uint8_t>(low), static_cast<std::uint8_t>(low + step)});
                }
            }
        }
    }
    std::vector<bool> needed(K, false);
    std::fill(needed.begin() + trim, needed.end() - trim, true);
    needed.front() = needed.back() = true;
    std::vector<Comparator> pruned;
    for (auto c = network.rbegin(); c != network.rend(); ++c) {
        if (!needed[c->low] && !needed[c->high]) continue;
        needed[c->low] = needed[c->high] = true;
        pruned.push_back(*c);
    }
    std::reverse(pruned.begin(), pruned.end());
    return pruned;
}

}  // namespace

void trimmed_mean(std::span<const Payload> payloads, std::size_t trim, std::span<float> out, int threads) {
    const std::size_t K = payloads.size();
    require_payloads("trimmed_mean", payloads);
    if (K > kMostSorted) {
        throw std::invalid_argument("trimmed_mean: " + std::to_string(K) + " payloads, at most " +
                                    std::to_string(kMostSorted) + " can be sorted; aggregate in groups");
    }
    if (trim > (K - 1) / 2) {
        throw std::invalid_argument("trimmed_mean: trim is " + std::to_string(trim) +
                                    ", which leaves none of " + std::to_string(K) +
                                    " payloads; it may be at most " + std::to_string((K - 1) / 2));
    }
    if (out.size() != payloads[0].size) {
        throw std::invalid_argument("trimmed_mean: out has " + std::to_string(out.size()) +
                                    " values, the payloads " + std::to_string(payloads[0].size));
    }
    for (std::size_t k = 0; k < K; ++k) {
        if (overlap(payloads[k].codes, out) || overlap(payloads[k].scales, out)) {
            throw std::invalid_argument("trimmed_mean: payload " + std::to_string(k) +
                                        " shares memory with out, which is overwritten");
        }
    }

    const RobustKernels& simd = kernels().robust;
    const std::vector<Comparator> network = sorting_network(K, trim);
    const std::size_t whole_blocks = kSortedValues / K / kLargestBlock * kLargestBlock;
    const std::size_t tile_size = std::min(whole_blocks, kLongestTile);
    const std::size_t tiles = (out.size() + tile_size - 1) / tile_size;
    std::atomic<std::size_t> fault = SIZE_MAX;
    std::vector<float> scratch(std::min(most_threads(threads), tiles) * (K + 1) * tile_size);
    std::atomic<std::size_t> ranges = 0;
    parallel_for(tiles, 1, threads, [&](std::size_t begin, std::size_t end) {
        if (begin == end) return;
        float* values = scratch.data() + ranges++ * (K + 1) * tile_size;
        float* mean = values + K * tile_size;
        for (std::size_t tile = begin; tile < end; ++tile) {
            const std::size_t first = tile * tile_size, N = std::min(tile_size, out.size() - first);
            for (std::size_t k = 0; k < K; ++k) {
                decode(slice(payloads[k], first, N), {values + k * tile_size, N}, 1);
            }
            const bool finite =
                simd.trimmed_mean(values, tile_size, K, N, network.data(), network.size(), trim, mean);
            if (!finite) return lower(fault, tile);
            std::copy_n(mean, N, out.data() + first);
        }
    });
    if (fault != SIZE_MAX) {
        const std::size_t first = fault * tile_size;
        const std::size_t N = std::min(tile_size, out.size() - first);
        for (std::size_t k = 0; k < K; ++k) {
            require_finite("trimmed_mean: payload " + std::to_string(k), payloads[k], first, N);
        }
    }
}

void norms(std::span<const Payload> payloads, std::span<double> norms, int threads) {
    require_payloads("norms", payloads);
    if (norms.size() != payloads.size()) {
        throw std::invalid_argument("norms: " + std::to_string(payloads.size()) + " payloads but room for " +
                                    std::to_string(norms.size()) + " norms");
    }
    squared_norms(payloads, norms, threads);
    for (double& norm : norms) norm = std::sqrt(norm);
}

}  // namespace fgrpo
