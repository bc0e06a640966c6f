#include "softmax.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels.h"
#include "softmax_kernels.h"
#include "threads.h"

namespace fgrpo {

namespace {

constexpr std::size_t kGrain = std::size_t{1} << 17;  // logits; the fewest worth a thread

std::size_t item_bytes(LogitType type) { return type == LogitType::float32 ? 4 : 2; }

template <typename Data>
Data* at(Data* data, LogitType type, std::int64_t item) {
    using Byte = std::conditional_t<std::is_const_v<Data>, const char, char>;
    return static_cast<Byte*>(data) + item * static_cast<std::int64_t>(item_bytes(type));
}

float value_at(const void* row, LogitType type, std::size_t j) {
    if (type == LogitType::float32) return static_cast<const float*>(row)[j];
    const std::uint32_t bits = std::uint32_t{static_cast<const std::uint16_t*>(row)[j]} << 16;
    return std::bit_cast<float>(bits);
}

void set_value(void* row, LogitType type, std::size_t j, float value) {
    if (type == LogitType::float32) {
        static_cast<float*>(row)[j] = value;
        return;
    }
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t kept = std::isnan(value) ? (bits >> 16) | 0x40u : rounded;
    static_cast<std::uint16_t*>(row)[j] = static_cast<std::uint16_t>(kept);
}

void require(bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument("softmax of rows: " + what);
}

void check(const LogitRows<const void>& logits, std::span<const std::int64_t> targets,
           const RowStatistics& statistics) {
    const std::size_t n = logits.starts.size();
    require(logits.vocab > 0, "there is no vocabulary");
    require(targets.size() == n && statistics.logp.size() == n && statistics.entropy.size() == n &&
                statistics.peak.size() == n && statistics.log_sum.size() == n,
            "what is per row differs in length");
    for (const std::int64_t target : targets) {
        require(target >= 0 && static_cast<std::uint64_t>(target) < logits.vocab,
                "target " + std::to_string(target) + " is not within the vocabulary of " +
                    std::to_string(logits.vocab));
    }
}

std::size_t rows_worth_a_thread(std::size_t vocab) { return std::max<std::size_t>(1, kGrain / vocab); }

}  // namespace

void row_statistics(const LogitRows<const void>& logits, std::span<const std::int64_t> targets,
                    double temperature, const RowStatistics& out, int threads) {
    check(logits, targets, out);
    const auto type = static_cast<std::size_t>(logits.type);
    const SoftmaxKernels& kernel = kernels().softmax;
    const auto work = [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const void* row = at(logits.data, logits.type, logits.starts[i]);
            const auto target = static_cast<std::size_t>(targets[i]);
            const float peak = kernel.peak[type](row, logits.vocab);
            // The sums leave the target out, whose exponential is exactly 1 when it leads: 1 + (little) would lose
            // digits of the little, which is all there is of log p and of the gradient when the target is far ahead.
            const Exponents y = {peak, static_cast<float>(1.0 / temperature), 0.0f};
            double others = 0.0, dot = 0.0;
            kernel.sums[type](row, target, y, &others, &dot);
            kernel.sums[type](at(row, logits.type, targets[i] + 1), logits.vocab - target - 1, y, &others,
                              &dot);
            const double shifted = (double{value_at(row, logits.type, target)} - double{peak}) / temperature;
            const double of_target = std::exp(shifted);
            const double log_sum = std::log1p(others + std::expm1(shifted));
            if (of_target > 0.0) dot += of_target * shifted;
            out.logp[i] = static_cast<float>(shifted - log_sum);
            out.entropy[i] = static_cast<float>(log_sum - dot / (others + of_target));
            out.peak[i] = peak;
            out.log_sum[i] = static_cast<float>(log_sum);
        }
    };
    parallel_for(logits.starts.size(), rows_worth_a_thread(logits.vocab), threads, work);
}

void row_gradients(const LogitRows<const void>& logits, std::span<const std::int64_t> targets,
                   double temperature, const RowStatistics& statistics, std::span<const float> grad_logp,
                   std::span<const float> grad_entropy, const LogitRows<void>& out, int threads) {
    check(logits, targets, statistics);
    const std::size_t n = logits.starts.size();
    require(
        grad_logp.size() == n && (grad_entropy.empty() || grad_entropy.size() == n) && out.starts.size() == n,
        "what is per row differs in length");
    require(out.type == logits.type && out.vocab == logits.vocab, "the gradient is of another type or width");
    const auto type = static_cast<std::size_t>(logits.type);
    const SoftmaxKernels& kernel = kernels().softmax;
    const auto work = [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const void* row = at(logits.data, logits.type, logits.starts[i]);
            void* grad = at(out.data, out.type, out.starts[i]);
            const double slope = grad_logp[i], logp = statistics.logp[i];
            const double entropy_slope = grad_entropy.empty() ? 0.0 : double{grad_entropy[i]};
            // 1 - p loses all digits when the target has nearly all the probability; -expm1(log p) keeps them.
            double at_target = slope * -std::expm1(logp);
            double factor = slope;
            if (entropy_slope != 0.0) {
                const double entropy = statistics.entropy[i];
                factor += entropy_slope * entropy;
                if (std::exp(logp) > 0.0) at_target -= entropy_slope * std::exp(logp) * (logp + entropy);
            }
            const Exponents y = {statistics.peak[i], static_cast<float>(1.0 / temperature),
                                 statistics.log_sum[i]};
            kernel.gradient[type](row, logits.vocab, y, static_cast<float>(-factor / temperature),
                                  static_cast<float>(-entropy_slope / temperature), grad);
            set_value(grad, out.type, static_cast<std::size_t>(targets[i]),
                      static_cast<float>(at_target / temperature));
        }
    };
    parallel_for(n, rows_worth_a_thread(logits.vocab), threads, work);
}

}  // namespace fgrpo
