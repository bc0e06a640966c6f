#include "client_stats.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "payloads.h"

namespace fgrpo {
namespace {

// A tile of the mean, in the two forms that codes and values are multiplied with.
class TileMean {
  public:
    explicit TileMean(std::span<const float> values) : values_(values) {}

    std::size_t size() const { return values_.size(); }
    const float* values() const { return values_.data(); }

    // As float64, padded with zeros to a multiple of 16; made when it is first asked for.
    const double* wide() {
        if (!widened_) {
            std::copy(values_.begin(), values_.end(), wide_);
            std::fill(wide_ + size(), wide_ + padded_size(), 0.0);
            widened_ = true;
        }
        return wide_;
    }
    std::size_t padded_size() const { return (size() + 15) / 16 * 16; }

  private:
    std::span<const float> values_;
    bool widened_ = false;
    alignas(64) double wide_[kTile];
};

// False, and nothing is added, where codes do not say all: in blocks that are not whole, where a decoded value is beyond
// float32, and where a code's product with the mean is.
bool add_by_codes(const Payload& payload, std::size_t first, const TileMean& mean, ClientStats& stats) {
    const auto [codec, block] = payload.format;
    if (!has_scales(codec) || (mean.size() & (block - 1)) != 0) return false;
    const Term term = term_at(payload, first, 1.0f);
    double squared_norm = 0.0, dot = 0.0;
    const std::uint32_t largest = kernels().code_moments[static_cast<int>(codec)](
        term, block, mean.size(), mean.values(), &squared_norm, &dot);
    if (largest >= largest_scale(codec) || !std::isfinite(dot)) return false;
    stats.squared_norm += squared_norm;
    stats.dot_with_mean += dot;
    return true;
}

void add_by_values(const Payload& payload, std::size_t first, TileMean& mean, ClientStats& stats) {
    const Kernels& simd = kernels();
    const Term term = term_at(payload, first, 1.0f);
    alignas(64) float values[kTile];
    simd.accumulate[static_cast<int>(payload.format.codec)](&term, 1, payload.format.block, mean.size(), true,
                                                            values);
    std::fill(values + mean.size(), values + mean.padded_size(), 0.0f);
    simd.moments(values, mean.wide(), mean.padded_size(), &stats.squared_norm, &stats.dot_with_mean);
}

}  // namespace

void add_client_stats(std::span<const Weighted> terms, std::size_t first, std::span<const float> mean,
                      ClientStats* stats) {
    TileMean tile(mean);
    for (std::size_t k = 0; k < terms.size(); ++k) {
        const Payload& payload = *terms[k].payload;
        if (!add_by_codes(payload, first, tile, stats[k])) add_by_values(payload, first, tile, stats[k]);
    }
}

}  // namespace fgrpo
