// Softmax statistics of rows of logits and the gradient in the logits: the CPU's side of fgrpo_kernels/gpu.
//
// Legend: n rows, V vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fgrpo {

enum class LogitType : std::uint8_t { float32, bfloat16 };

// Where rows start, in items from `data`; V items each, one after the other.
template <typename Data>
struct LogitRows {
    Data* data;
    std::span<const std::int64_t> starts;
    std::size_t vocab;
    LogitType type;
};

// Per row; all but `peak`, the highest logit itself, are of softmax(logits / temperature). `log_sum` is the log of the
// sum of exp((logit - peak) / temperature): apart from the peak it keeps its digits.
struct RowStatistics {
    std::span<float> logp, entropy, peak, log_sum;
};

// A row of NaN, of +inf or of nothing but -inf has NaN for statistics. Throws std::invalid_argument where a target
// is not within [0, V) or spans differ in length.
void row_statistics(const LogitRows<const void>& logits, std::span<const std::int64_t> targets,
                    double temperature, const RowStatistics& out, int threads);

// What a loss's gradients in logp and, unless that is empty, in entropy make of its gradient in the logits. With p the
// probabilities: (g * (1[j = target] - p_j) - e * p_j * (log p_j + entropy)) / temperature. `out` has as many rows as
// the logits and their type; it may be the logits.
void row_gradients(const LogitRows<const void>& logits, std::span<const std::int64_t> targets,
                   double temperature, const RowStatistics& statistics, std::span<const float> grad_logp,
                   std::span<const float> grad_entropy, const LogitRows<void>& out, int threads);

}  // namespace fgrpo
