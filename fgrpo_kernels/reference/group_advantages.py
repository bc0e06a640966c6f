"""Specification of `group_advantages`.

B completions   R reward functions   S groups
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.results import GroupAdvantages


class _Statistics(NamedTuple):
    """Of each group, or of the batch as one group, `[S]`; rows without a reward are not counted."""

    size: Tensor
    mean: Tensor
    std: Tensor
    all_equal: Tensor


def group_advantages(
    rewards: Tensor,
    group_size: int | None = None,
    *,
    group_ids: Tensor | None = None,
    num_groups: int | None = None,
    reward_weights: Tensor | None = None,
    scale: str = "group",
    baseline: str = "mean",
    eps: float = 1e-4,
) -> GroupAdvantages:
    """See `fgrpo_kernels.group_advantages`."""
    rewards_B = _combine(rewards.detach(), reward_weights)
    if group_ids is None:
        assert group_size is not None, "checked by the public op"
        num_groups = len(rewards_B) // group_size
        group_B = torch.arange(num_groups, device=rewards.device).repeat_interleave(group_size)
    elif num_groups is None:
        ids, group_B = group_ids.unique(return_inverse=True)
        num_groups = len(ids)
    else:
        group_B = group_ids

    scored_B = ~rewards_B.isnan()
    group = _statistics(rewards_B, scored_B, group_B, num_groups)
    batch = _statistics(rewards_B, scored_B, torch.zeros_like(group_B), 1)
    # A group of one row (public op: only with scale="batch") is compared with the batch instead.
    lone_S = torch.bincount(group_B, minlength=num_groups) == 1
    compared = _Statistics(*(torch.where(lone_S, b, g) for g, b in zip(group, batch, strict=True)))
    size_B, mean_B, _, equal_B = (x[group_B] for x in compared)

    advantages_B = rewards_B - mean_B
    if baseline == "leave_one_out":
        advantages_B = advantages_B * size_B / (size_B - 1)  # mean of the others = mean - (r - mean) / (size - 1)
    if scale != "none":
        advantages_B = advantages_B / ((batch.std if scale == "batch" else group.std[group_B]) + eps)
    advantages_B = advantages_B.masked_fill(equal_B | ~scored_B, 0.0)
    return GroupAdvantages(advantages_B, group.mean, group.std, compared.all_equal)


def _combine(rewards: Tensor, reward_weights: Tensor | None) -> Tensor:
    """`[B]` weighted sums over the reward functions that apply; NaN where none does."""
    if rewards.dtype != torch.float64:
        rewards = rewards.float()
    if rewards.ndim == 1:
        return rewards
    weights_R = rewards.new_ones(rewards.shape[1]) if reward_weights is None else reward_weights.to(rewards)
    return (rewards * weights_R).nansum(1).masked_fill(rewards.isnan().all(1), torch.nan)


def _statistics(rewards_B: Tensor, scored_B: Tensor, group_B: Tensor, num_groups: int) -> _Statistics:
    values, group = rewards_B[scored_B], group_B[scored_B]
    zeros = rewards_B.new_zeros(num_groups)
    size = zeros.index_add(0, group, torch.ones_like(values))
    mean = zeros.index_add(0, group, values) / size
    squares = zeros.index_add(0, group, (values - mean[group]).square())
    lowest = zeros.scatter_reduce(0, group, values, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, group, values, "amax", include_self=False)
    all_equal = lowest == highest
    std = (squares / (size - 1)).sqrt().masked_fill(all_equal, 0.0)
    return _Statistics(size, mean, std, all_equal)
