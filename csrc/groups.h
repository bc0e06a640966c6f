// Group-relative advantages of rewards: the CPU's side of fgrpo_kernels/gpu/group_advantages.py. The operations are those
// of fgrpo_kernels/reference/group_advantages.py, in float64 and in their order.
//
// Legend: B completions, S groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fgrpo {

// By id, each within [0, count), in any order; or, without ids, groups of one size one after the other.
struct Groups {
    std::span<const std::int64_t> ids;
    std::size_t count;
};

enum class AdvantageScale : std::uint8_t { group, batch, none };

struct AdvantageOptions {
    AdvantageScale scale;
    bool leave_one_out;
    double eps;
};

// [B], [S], [S] and [S]; `degenerate` is 0 or 1.
struct Advantages {
    std::span<double> advantages, mean, std;
    std::span<std::uint8_t> degenerate;
};

// (reward - baseline) / (std + eps). A reward of NaN is none: it is left out of what is of its group, and its advantage
// is 0, as are those of a degenerate group, whose rewards are all equal. A group of one row is compared with the batch.
// Throws std::invalid_argument where spans differ in length, rewards do not divide into groups or an id is out of range.
void group_advantages(std::span<const double> rewards, const Groups& groups, const AdvantageOptions& options,
                      const Advantages& out);

}  // namespace fgrpo
