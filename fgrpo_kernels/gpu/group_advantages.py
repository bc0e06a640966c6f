"""`group_advantages` on a GPU: one launch for groups of one size, one program a group.

Groups by id are first brought into order by `torch.unique` and a sort, which wait for the device.

B completions   R reward functions   S groups
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.results import GroupAdvantages

BATCH_BLOCK = 1024  # rows of the batch that a program takes at a time


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
    value = (row * 0).to(tl.float32)
    scored = row < 0  # nothing yet
    for r in range(0, num_rewards):
        reward = tl.load(rewards_ptr + row * stride_b + r * stride_r, mask=exists, other=float("nan")).to(tl.float32)
        applies = reward == reward
        if reward_weights_ptr is not None:
            reward = reward * tl.load(reward_weights_ptr + r)
        value += tl.where(applies, reward, 0.0)
        scored = scored | applies
    return value, scored


@jit(do_not_specialize=["B", "group_size", "num_rewards"])
def group_advantages_kernel(
    rewards_ptr: tl.tensor,
    stride_b: tl.tensor,
    stride_r: tl.tensor,
    reward_weights_ptr: tl.tensor,
    num_rewards: tl.tensor,
    order_ptr: tl.tensor,
    starts_ptr: tl.tensor,
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
    """Program g: the statistics of group g and the advantages of its rows.

    With `order_ptr`, group g is the rows `order[starts[g] : starts[g + 1]]`; else `group_size` consecutive ones.
    """
    group = tl.program_id(0).to(tl.int64)
    start, size = group * group_size, group_size
    if order_ptr is not None:
        start = tl.load(starts_ptr + group)
        size = (tl.load(starts_ptr + group + 1) - start).to(tl.int32)
    member = tl.arange(0, BLOCK)
    exists = member < size
    row = start + member
    if order_ptr is not None:
        row = tl.load(order_ptr + row, mask=exists, other=0)
    value, scored = combined_rewards(rewards_ptr, stride_b, stride_r, reward_weights_ptr, num_rewards, row, exists)

    count = tl.sum(scored.to(tl.float32), 0)
    mean = tl.sum(value, 0) / count
    equal = tl.min(tl.where(scored, value, float("inf")), 0) >= tl.max(tl.where(scored, value, float("-inf")), 0)
    deviation = tl.where(scored, value - mean, 0.0)
    std = tl.where(equal, 0.0, tl.sqrt(tl.sum(deviation * deviation, 0) / (count - 1)))
    tl.store(mean_ptr + group, mean)
    tl.store(std_ptr + group, std)

    divisor = std + eps
    if SCALE == "none":
        divisor = 1.0
    if SCALE == "batch":  # every program reads the whole batch: a launch costs more than B numbers from the cache
        batch_count, batch_sum = 0.0, 0.0
        lowest, highest = float("inf"), float("-inf")
        for first in range(0, B, BATCH_BLOCK):
            other = first + tl.arange(0, BATCH_BLOCK).to(tl.int64)
            x, there = combined_rewards(
                rewards_ptr, stride_b, stride_r, reward_weights_ptr, num_rewards, other, other < B
            )
            batch_count += tl.sum(there.to(tl.float32), 0)
            batch_sum += tl.sum(x, 0)
            lowest = tl.minimum(lowest, tl.min(tl.where(there, x, float("inf")), 0))
            highest = tl.maximum(highest, tl.max(tl.where(there, x, float("-inf")), 0))
        batch_mean = batch_sum / batch_count
        squares = 0.0
        for first in range(0, B, BATCH_BLOCK):
            other = first + tl.arange(0, BATCH_BLOCK).to(tl.int64)
            x, there = combined_rewards(
                rewards_ptr, stride_b, stride_r, reward_weights_ptr, num_rewards, other, other < B
            )
            x = tl.where(there, x - batch_mean, 0.0)
            squares += tl.sum(x * x, 0)
        divisor = tl.where(lowest >= highest, 0.0, tl.sqrt(squares / (batch_count - 1))) + eps
        if size == 1:  # a lone row is compared with the batch
            count, mean, equal = batch_count, batch_mean, lowest >= highest

    advantage = value - mean
    if LEAVE_ONE_OUT:
        advantage = advantage * count / (count - 1)
    advantage = tl.where(scored & (equal == 0), advantage / divisor, 0.0)
    tl.store(advantages_ptr + row, advantage, mask=exists)
    tl.store(degenerate_ptr + group, equal)


def group_advantages(
    rewards: Tensor,
    group_size: int | None,
    group_ids: Tensor | None,
    reward_weights: Tensor | None,
    scale: str,
    baseline: str,
    eps: float,
) -> GroupAdvantages:
    """`fgrpo_kernels.group_advantages` after its checks."""
    rewards = rewards.detach()
    if group_ids is None:
        assert group_size is not None, "checked by the public op"
        order, starts, largest = None, None, group_size
        num_groups = len(rewards) // group_size
    else:
        _, group_B, counts = group_ids.unique(return_inverse=True, return_counts=True)
        order = group_B.argsort(stable=True)
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        num_groups, largest = len(counts), int(counts.max()) if len(counts) else 1

    advantages, mean, std = (
        torch.empty(size, dtype=torch.float32, device=rewards.device) for size in (len(rewards), num_groups, num_groups)
    )
    degenerate = torch.empty(num_groups, dtype=torch.bool, device=rewards.device)
    if num_groups > 0:
        weights_R = None if reward_weights is None else reward_weights.to(rewards.device, torch.float32).contiguous()
        stride_r, num_rewards = (rewards.stride(1), rewards.shape[1]) if rewards.ndim == 2 else (0, 1)
        block = 1 << (largest - 1).bit_length()
        with device_of(rewards):
            group_advantages_kernel[(num_groups,)](
                rewards, rewards.stride(0), stride_r, weights_R, num_rewards, order, starts, largest, len(rewards),
                advantages, mean, std, degenerate, eps,
                SCALE=scale, LEAVE_ONE_OUT=baseline == "leave_one_out", BLOCK=block, BATCH_BLOCK=BATCH_BLOCK,
                num_warps=1 if block <= 256 and scale != "batch" else 4,
            )  # fmt: skip
    return GroupAdvantages(advantages, mean, std, degenerate)
