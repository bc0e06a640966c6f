"""`group_advantages` on a GPU: one launch, one program a group.

Groups by id are found by comparing: each program reads all ids. That is 4 million comparisons for 8192 rows in 512
groups, next to nothing, and spares a sort with its launches.

The arithmetic is float64, in which sums and squares of float32 rewards neither overflow nor lose the digits that tell
large rewards apart.

B completions   R reward functions   S groups
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels.direct import direct
from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.jit import FUSED, jit, tl

MAX_BLOCK = 1024  # rows that a program takes at a time
SMALL_BLOCK = 256  # one warp is enough


@jit
def combined_rewards(
    rewards_ptr: tl.tensor,
    stride_b: tl.tensor,
    stride_r: tl.tensor,
    reward_weights_ptr: tl.tensor,
    num_rewards: tl.tensor,
    row: tl.tensor,
    exists: tl.tensor,
) -> tl.tensor:
    """Weighted sums over the reward functions that apply to a row, and whether any does; 0 and False otherwise."""
    value = (row * 0).to(tl.float64)
    scored = row < 0  # nothing yet
    for r in range(0, num_rewards):
        reward = tl.load(rewards_ptr + row * stride_b + r * stride_r, mask=exists, other=float("nan")).to(tl.float64)
        applies = reward == reward
        if reward_weights_ptr is not None:
            reward = reward * tl.load(reward_weights_ptr + r)
        value += tl.where(applies, reward, 0.0)
        scored = scored | applies
    return value, scored


@jit
def member_rows(
    first: tl.tensor, end: tl.tensor, ids_ptr: tl.tensor, group: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """Rows from `first` on, and which of them are in the group: all before `end`, or those with its id."""
    row = first + tl.arange(0, BLOCK).to(tl.int64)
    exists = row < end
    if ids_ptr is not None:
        exists = exists & (tl.load(ids_ptr + row, mask=exists, other=-1) == group)
    return row, exists


@jit
def statistics(
    rewards_ptr: tl.tensor,
    stride_b: tl.tensor,
    stride_r: tl.tensor,
    reward_weights_ptr: tl.tensor,
    num_rewards: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    ids_ptr: tl.tensor,
    group: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """`(rows, rows with a reward, their mean, standard deviation, whether they are all equal)` of a group."""
    zero = (start * 0).to(tl.float64)
    size, count, total, squares = zero, zero, zero, zero
    lowest, highest = zero + float("inf"), zero + float("-inf")
    for first in range(start, end, BLOCK):
        row, exists = member_rows(first, end, ids_ptr, group, BLOCK)
        value, scored = combined_rewards(rewards_ptr, stride_b, stride_r, reward_weights_ptr, num_rewards, row, exists)
        size += tl.sum(exists.to(tl.float64), 0)
        count += tl.sum(scored.to(tl.float64), 0)
        total += tl.sum(value, 0)
        lowest = tl.minimum(lowest, tl.min(tl.where(scored, value, float("inf")), 0))
        highest = tl.maximum(highest, tl.max(tl.where(scored, value, float("-inf")), 0))
    total += total - total  # NaN where a reward is infinite
    mean = total / count
    for first in range(start, end, BLOCK):
        row, exists = member_rows(first, end, ids_ptr, group, BLOCK)
        value, scored = combined_rewards(rewards_ptr, stride_b, stride_r, reward_weights_ptr, num_rewards, row, exists)
        deviation = tl.where(scored, value - mean, 0.0)
        squares += tl.sum(deviation * deviation, 0)
    equal = (lowest >= highest) & (total == total)
    return size, count, mean, tl.where(equal, 0.0, tl.sqrt(squares / (count - 1))), equal


@jit(do_not_specialize=["B", "group_size", "num_rewards"])
def group_advantages_kernel(
    rewards_ptr: tl.tensor,
    stride_b: tl.tensor,
    stride_r: tl.tensor,
    reward_weights_ptr: tl.tensor,
    num_rewards: tl.tensor,
    ids_ptr: tl.tensor,
    group_size: tl.tensor,
    B: tl.tensor,
    advantages_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    std_ptr: tl.tensor,
    degenerate_ptr: tl.tensor,
    eps: tl.tensor,
    SCALE: tl.constexpr,
    LEAVE_ONE_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    BATCH_BLOCK: tl.constexpr,
) -> None:
    """Program g: the statistics of group g and the advantages of its rows: those with id g, or without ids
    `group_size` consecutive ones."""
    group = tl.program_id(0).to(tl.int64)
    start, end = group * 0, group * 0 + B
    if ids_ptr is None:
        start, end = group * group_size, (group + 1) * group_size
    size, count, mean, std, equal = statistics(
        rewards_ptr, stride_b, stride_r, reward_weights_ptr, num_rewards, start, end, ids_ptr, group, BLOCK
    )
    tl.store(mean_ptr + group, mean)
    tl.store(std_ptr + group, std)

    divisor = std + eps
    if SCALE == "none":
        divisor = 1.0
    if SCALE == "batch":  # every program reads the whole batch: a launch costs more than B numbers from the cache
        _, batch_count, batch_mean, batch_std, batch_equal = statistics(
            rewards_ptr, stride_b, stride_r, reward_weights_ptr, num_rewards,
            group * 0, group * 0 + B, None, group, BATCH_BLOCK,
        )  # fmt: skip
        divisor = batch_std + eps
        if size == 1:  # a lone row is compared with the batch
            count, mean, equal = batch_count, batch_mean, batch_equal
    elif size == 1:  # refused where it can be seen before the launch
        mean, equal = mean + float("nan"), equal & False
    tl.store(degenerate_ptr + group, equal)

    for first in range(start, end, BLOCK):
        row, exists = member_rows(first, end, ids_ptr, group, BLOCK)
        value, scored = combined_rewards(rewards_ptr, stride_b, stride_r, reward_weights_ptr, num_rewards, row, exists)
        advantage = value - mean
        if LEAVE_ONE_OUT:
            advantage = advantage * count / (count - 1)
        advantage = tl.where(scored & (equal == 0), advantage / divisor, 0.0)
        tl.store(advantages_ptr + row, advantage, mask=exists)
    if ids_ptr is not None:  # noqa: SIM102  (the compiler knows this one, and not the next)
        if group == 0:  # rows of a group that does not exist
            for first in range(start, end, BLOCK):
                row = first + tl.arange(0, BLOCK).to(tl.int64)
                id = tl.load(ids_ptr + row, mask=row < end, other=0)
                astray = (row < end) & ((id < 0) | (id >= tl.num_programs(0)))
                tl.store(advantages_ptr + row, float("nan"), mask=astray)


def ids_block(num_rows: int) -> int:
    """Rows that a program reads at a time where groups are given by ids."""
    return SMALL_BLOCK if num_rows <= SMALL_BLOCK else MAX_BLOCK


@torch.library.custom_op("fgrpo::group_advantages", mutates_args=())
def group_advantages(
    rewards: Tensor,
    group_size: int,
    group_ids: Tensor | None,
    num_groups: int,
    reward_weights: Tensor | None,
    scale: str,
    baseline: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(advantages [B], mean [S], std [S], degenerate [S])`; with ids, which are below `num_groups`, no group size."""
    outputs = _outputs(rewards, num_groups)
    if num_groups > 0:
        device = rewards.device
        weights_R = None if reward_weights is None else reward_weights.to(device, torch.float64).contiguous()
        stride_r, num_rewards = (rewards.stride(1), rewards.shape[1]) if rewards.ndim == 2 else (0, 1)
        rows = group_size if group_ids is None else rewards.shape[0]
        # The group size is the same in every step; the rows of a batch of ids are not.
        block = min(MAX_BLOCK, 1 << max(0, rows - 1).bit_length()) if group_ids is None else ids_block(rows)
        small = block <= SMALL_BLOCK and scale != "batch"
        with device_of(rewards):
            group_advantages_kernel[(num_groups,)](
                rewards, rewards.stride(0), stride_r, weights_R, num_rewards, group_ids, group_size, rewards.shape[0],
                *outputs, eps,
                SCALE=scale, LEAVE_ONE_OUT=baseline == "leave_one_out", BLOCK=block, BATCH_BLOCK=MAX_BLOCK,
                num_warps=1 if small else 4, **FUSED,
            )  # fmt: skip
    return outputs


@group_advantages.register_fake
def _(rewards: Tensor, group_size: int, group_ids: Tensor | None, num_groups: int, *_: Any) -> tuple[Tensor, ...]:
    return _outputs(rewards, num_groups)


group_advantages_directly = direct(group_advantages)


def normalize_then_sum(
    rewards: Tensor,
    group_size: int,
    group_ids: Tensor | None,
    num_groups: int,
    reward_weights: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same four where every reward function is normalised by itself: three launches of the one kernel.

    The columns are so many times the groups. Their weighted sums have mean 0 in each group, because each column has,
    and so in the batch: to normalise them over the batch is to divide by its standard deviation.
    """
    rewards_BR = rewards[:, None] if rewards.ndim == 1 else rewards
    B, R = rewards_BR.shape
    ids_RB = None
    if group_ids is not None:
        first_R = num_groups * torch.arange(R, device=group_ids.device)
        known_B = (group_ids >= 0) & (group_ids < num_groups)
        ids_RB = torch.where(known_B, group_ids + first_R[:, None], -1).flatten()
    columns = rewards_BR.t().flatten()
    normalised, *_ = group_advantages_directly(columns, group_size, ids_RB, R * num_groups, None, "group", "mean", eps)
    normalised_BR = torch.where(columns.isnan(), torch.nan, normalised).view(R, B).t()
    groups = (group_size, group_ids, num_groups, reward_weights)
    unscaled, mean, std, _ = group_advantages_directly(rewards, *groups, "none", "mean", eps)
    advantages, _, _, degenerate = group_advantages_directly(normalised_BR, *groups, "batch", "mean", eps)
    # What the first launch has found to be wrong: a lone row, an id or a reward that could not be looked at.
    return torch.where(unscaled.isnan(), torch.nan, advantages), mean, std, degenerate


def _outputs(rewards: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    advantages = rewards.new_empty(rewards.shape[0], dtype=torch.float32)
    mean, std = (rewards.new_empty(num_groups, dtype=torch.float32) for _ in range(2))
    return advantages, mean, std, rewards.new_empty(num_groups, dtype=torch.bool)
