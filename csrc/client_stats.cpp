#include "client_stats.h"

#include <algorithm>

#include "gram_kernels.h"
#include "payloads.h"

namespace fgrpo {
namespace {

// A tile of the mean, in the two forms that codes and values are multiplied with.
class TileMean {
  public:
    explicit TileMean(std::span<const float> values)
        : values_(values),
          whole_(size() % kSmallestBlock == 0 && gram_kernels().split_mean(values.data(), size(), &digits_)) {
    }

    std::size_t size() const { return values_.size(); }

    // Null where digits do not hold every value.
    const MeanDigits* digits() const { return whole_ ? &digits_ : nullptr; }

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
    MeanDigits digits_;
    bool whole_, widened_ = false;
    alignas(64) double wide_[kTile];
};

// Products of codes with integers, several times as fast as those of values. False, and nothing is added, where they
// do not say all: in blocks that are not whole, and where a value is beyond float32.
bool add_by_codes(const Payload& payload, std::size_t first, const TileMean& mean, ClientStats& stats) {
    const auto [codec, block] = payload.format;
    if (!mean.digits() || !has_scales(codec) || (mean.size() & (block - 1)) != 0) return false;
    const Term term = term_at(payload, first, 1.0f);
    double sums[4] = {};
    const std::uint32_t largest = gram_kernels().add_products_with_mean[static_cast<int>(codec)](
        term.codes, term.scales, block, mean.size(), *mean.digits(), sums);
    if (largest >= largest_scale(codec)) return false;
    stats.squared_norm += sums[0];
    stats.dot_with_mean += ((sums[1] * 0x1p16 + sums[2]) * 0x1p15 + sums[3]) * mean.digits()->unit;
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
