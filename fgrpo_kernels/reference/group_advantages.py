"""Specification of `group_advantages`.

All arithmetic is float64: next to a model's it costs nothing, and a weighted sum of rewards of different sizes keeps
the small ones.

B completions   R reward functions   S groups
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.results import GroupAdvantages
from fgrpo_kernels.rowwise import accumulation_dtype


class _Statistics(NamedTuple):
    """Of each group, or of the batch as one group, `[S]`; rows without a reward are not counted.

    The mean is `lowest + centre`. Apart, the two keep the digits of rewards that differ by little next to their size.
    """

    size: Tensor
    lowest: Tensor
    centre: Tensor
    std: Tensor
    all_equal: Tensor

    def deviations(self, rewards_B: Tensor, group_B: Tensor) -> Tensor:
        """`[B]`: each reward less its group's mean."""
        return rewards_B - self.lowest[group_B] - self.centre[group_B]


def group_advantages(
    rewards: Tensor,
    group_size: int | None = None,
    *,
    group_ids: Tensor | None = None,
    num_groups: int | None = None,
    reward_weights: Tensor | None = None,
    multi_objective_aggregation: str = "sum_then_normalize",
    scale: str = "group",
    baseline: str = "mean",
    eps: float = 1e-4,
) -> GroupAdvantages:
    """See `fgrpo_kernels.group_advantages`."""
    rewards_BR = rewards.detach().double()
    rewards_BR = rewards_BR[:, None] if rewards_BR.ndim == 1 else rewards_BR
    if group_ids is None:
        assert group_size is not None, "checked by the public op"
        num_groups = len(rewards_BR) // group_size
        group_B = torch.arange(num_groups, device=rewards.device).repeat_interleave(group_size)
    elif num_groups is None:
        ids, group_B = group_ids.unique(return_inverse=True)
        num_groups = len(ids)
    else:
        group_B = group_ids

    rewards_B = weighted_sum(rewards_BR, reward_weights)
    scored_B = ~rewards_B.isnan()
    group = _statistics(rewards_B, group_B, num_groups)
    whole_B = torch.zeros_like(group_B)
    if multi_objective_aggregation == "normalize_then_sum":
        sums_B = weighted_sum(_normalised(rewards_BR, group_B, num_groups, eps), reward_weights)
        batch = _statistics(sums_B, whole_B, 1)
        advantages_B = batch.deviations(sums_B, whole_B) / (batch.std + eps)
        degenerate = _statistics(sums_B, group_B, num_groups).all_equal
    else:
        batch = _statistics(rewards_B, whole_B, 1)
        # A group of one row (public op: only with scale="batch") is compared with the batch instead.
        lone_S = torch.bincount(group_B, minlength=num_groups) == 1
        compared = _Statistics(*(torch.where(lone_S, b, g) for g, b in zip(group, batch, strict=True)))
        advantages_B = compared.deviations(rewards_B, group_B)
        if baseline == "leave_one_out":  # mean of the others = mean - (r - mean) / (size - 1)
            advantages_B = advantages_B * (compared.size / (compared.size - 1))[group_B]
        if scale != "none":
            advantages_B = advantages_B / ((batch.std if scale == "batch" else group.std[group_B]) + eps)
        degenerate = compared.all_equal
    advantages_B = advantages_B.masked_fill(degenerate[group_B] | ~scored_B, 0.0)
    dtype = accumulation_dtype(rewards.dtype)
    mean = group.lowest + group.centre
    return GroupAdvantages(advantages_B.to(dtype), mean.to(dtype), group.std.to(dtype), degenerate)


def weighted_sum(rewards_BR: Tensor, reward_weights: Tensor | None) -> Tensor:
    """`[B]` weighted sums over the reward functions that apply; NaN where none does."""
    weights_R = rewards_BR.new_ones(rewards_BR.shape[1]) if reward_weights is None else reward_weights.to(rewards_BR)
    return (rewards_BR * weights_R).nansum(1).masked_fill(rewards_BR.isnan().all(1), torch.nan)


def _normalised(rewards_BR: Tensor, group_B: Tensor, num_groups: int, eps: float) -> Tensor:
    """`[B, R]`: of each reward function by itself, the deviations from the group's mean over its `std + eps`."""
    normalised_BR = torch.empty_like(rewards_BR)
    for r, rewards_B in enumerate(rewards_BR.unbind(1)):
        group = _statistics(rewards_B, group_B, num_groups)
        deviations_B = group.deviations(rewards_B, group_B) / (group.std[group_B] + eps)
        normalised_BR[:, r] = deviations_B.masked_fill(group.all_equal[group_B] & ~rewards_B.isnan(), 0.0)
    return normalised_BR


def _statistics(rewards_B: Tensor, group_B: Tensor, num_groups: int) -> _Statistics:
    scored_B = ~rewards_B.isnan()
    values, group = rewards_B[scored_B], group_B[scored_B]
    zeros = rewards_B.new_zeros(num_groups)
    size = zeros.index_add(0, group, torch.ones_like(values))
    lowest = zeros.scatter_reduce(0, group, values, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, group, values, "amax", include_self=False)
    span = highest - lowest
    shifted = values - lowest[group]
    centre = zeros.index_add(0, group, shifted) / size
    squares = zeros.index_add(0, group, ((shifted - centre[group]) / span[group]).square())  # by the span: no overflow
    all_equal = lowest == highest
    std = (span * (squares / (size - 1)).sqrt()).masked_fill(all_equal, 0.0)
    return _Statistics(size, lowest, centre, std, all_equal)
