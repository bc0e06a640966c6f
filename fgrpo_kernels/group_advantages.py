"""Group-relative advantages from rewards."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fgrpo_kernels import native_groups, reference
from fgrpo_kernels.checks import can_look_at, check_floating, check_positive, check_tensors
from fgrpo_kernels.derivatives import check_constants
from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu import group_advantages as gpu
from fgrpo_kernels.results import GroupAdvantages

Scale = Literal["group", "batch", "none"]
Baseline = Literal["mean", "leave_one_out"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]


def group_advantages(
    rewards: Tensor,
    group_size: int | None = None,
    *,
    group_ids: Tensor | None = None,
    num_groups: int | None = None,
    reward_weights: Tensor | None = None,
    multi_objective_aggregation: Aggregation = "sum_then_normalize",
    scale: Scale = "group",
    baseline: Baseline = "mean",
    eps: float = 1e-4,
) -> GroupAdvantages:
    """How much better each completion is than the others of its prompt: `(reward - baseline) / (std + eps)`.

    Args:
        rewards: `[B]`, or `[B, R]` for R reward functions, floating. NaN means "this function does not apply": it is
            left out of the row's sum. A row with nothing but NaN has no reward: it is left out of all statistics and
            its advantage is 0. Infinite rewards are refused; on a GPU, where looking would wait for the device,
            they make their group's advantages NaN.
        group_size: completions per prompt, when the groups are consecutive rows of one size. Or else:
        group_ids: `[B]` integers, any values in any order; equal ids are one group. Groups may differ in size.
        num_groups: with ids that are in `[0, num_groups)`, how many groups there are, empty ones among them. On a GPU
            that makes the whole a single launch; without it the number has to be found first (a sort, and the host
            waits). Nothing is then looked at on a GPU: an id out of range, or a group of one row where it is refused,
            gets NaN.
        reward_weights: `[R]` weights of the reward functions (default 1 each); only with rewards `[B, R]`.
        multi_objective_aggregation: what becomes of several reward functions (TRL's name and values).
            "sum_then_normalize": their weighted sum is the reward. "normalize_then_sum" (GDPO, arXiv 2601.05242): each
            is normalised in its group, `(reward - mean) / (std + eps)`, and their weighted sum is normalised again,
            over the batch; so a function with a small spread counts as much as one with a large one. That leaves no
            choice of `scale` and `baseline`. A group is then degenerate if those sums are all equal in it.
        scale: what divides: the standard deviation (Bessel's) of the "group" or of the whole "batch", plus `eps`;
            "none" divides by nothing (Dr. GRPO).
        baseline: "mean" of the group, or "leave_one_out": the mean of the group's other rows (RLOO).
        eps: added to the standard deviation.

    Returns:
        GroupAdvantages(advantages `[B]`, mean `[S]`, std `[S]`, degenerate `[S]`), float32 (float64 for float64
        rewards), without gradient; groups in order of appearance for `group_size`, in order of id for `group_ids`.
        The arithmetic is float64: rewards may be large, and differ by little next to their size. Mean and standard
        deviation are those of the weighted sums of rewards.
        Equal rewards are found by comparing them, not by a small std, and get advantages of exactly 0. So does a
        group in which only one row has a reward.

    A group of one row has nothing to be compared with and is refused, except with `scale="batch"`: there its baseline
    is the mean of the batch (with "leave_one_out", of the batch's other rows), as in REINFORCE++, and it is
    degenerate if the whole batch is.

    Example:
        >>> rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.5])  # three prompts, two completions each
        >>> group_advantages(rewards, group_size=2, eps=1e-6).advantages
        tensor([ 0.7071, -0.7071, -0.7071,  0.7071,  0.0000,  0.0000])

    Raises:
        TypeError, ValueError: see above; the message says which.
        NotImplementedError: a derivative asked for in the rewards, by `torch.func` or in forward mode.
    """
    check_tensors("group_advantages", {"group_ids": group_ids}, rewards=rewards)
    if reward_weights is not None:  # on any device: there are few
        check_tensors("group_advantages", reward_weights=reward_weights)
    check_floating("group_advantages", "rewards", rewards)
    if rewards.ndim not in (1, 2):
        raise ValueError(f"group_advantages: rewards must be [B] or [B, R], got {list(rewards.shape)}")
    if reward_weights is not None and (rewards.ndim != 2 or reward_weights.shape != rewards.shape[1:]):
        raise ValueError(
            f"group_advantages: reward_weights {list(reward_weights.shape)} must be [R] with rewards [B, R], "
            f"got rewards {list(rewards.shape)}"
        )
    if can_look_at(rewards) and torch.isinf(rewards).any():
        raise ValueError("group_advantages: rewards must be finite, or NaN where a reward function does not apply")
    if scale not in ("group", "batch", "none"):
        raise ValueError(f'group_advantages: scale must be "group", "batch" or "none", got {scale!r}')
    if baseline not in ("mean", "leave_one_out"):
        raise ValueError(f'group_advantages: baseline must be "mean" or "leave_one_out", got {baseline!r}')
    if multi_objective_aggregation not in get_args(Aggregation):
        raise ValueError(
            f"group_advantages: multi_objective_aggregation must be one of {', '.join(get_args(Aggregation))}, got "
            f"{multi_objective_aggregation!r}"
        )
    decoupled = multi_objective_aggregation == "normalize_then_sum"
    if decoupled and (scale, baseline) != ("group", "mean"):
        raise ValueError(
            "group_advantages: normalize_then_sum normalises in the group and then over the batch, so scale and "
            f"baseline must be left at their defaults, got {scale!r} and {baseline!r}"
        )
    check_positive("group_advantages", "eps", eps)
    _check_groups(rewards.shape[0], group_size, group_ids, num_groups)
    check_constants("group_advantages", rewards=rewards, reward_weights=reward_weights)
    rewards = rewards.detach()
    if group_ids is None:
        assert group_size is not None, "just checked"
        num_groups = rewards.shape[0] // group_size
        lonely = "group_size is 1" if group_size == 1 and rewards.shape[0] > 0 else None
    else:
        group_ids, num_groups, lonely = _dense_ids(group_ids, num_groups)
    if lonely is not None and scale != "batch":
        raise ValueError(
            f"group_advantages: {lonely}, which leaves nothing to compare its reward with; sample several completions "
            'per prompt, or use scale="batch" to compare with the batch'
        )
    if uses_triton(rewards):
        arguments = (rewards, group_size or 0, group_ids, num_groups, reward_weights)
        if decoupled:
            return GroupAdvantages(*gpu.normalize_then_sum(*arguments, eps))
        return GroupAdvantages(*gpu.group_advantages_directly(*arguments, scale, baseline, eps))
    if native_groups.serves(rewards) and not decoupled:
        return native_groups.group_advantages(rewards, group_ids, num_groups, reward_weights, scale, baseline, eps)
    return reference.group_advantages(
        rewards,
        group_size,
        group_ids=group_ids,
        num_groups=num_groups,
        reward_weights=reward_weights,
        multi_objective_aggregation=multi_objective_aggregation,
        scale=scale,
        baseline=baseline,
        eps=eps,
    )


def _check_groups(num_rows: int, group_size: int | None, group_ids: Tensor | None, num_groups: int | None) -> None:
    if (group_size is None) == (group_ids is None):
        raise ValueError("group_advantages: give either group_size or group_ids, one of the two")
    if group_size is not None and (group_size < 1 or num_rows % group_size != 0):
        raise ValueError(f"group_advantages: {num_rows} rewards do not divide into groups of {group_size}")
    if num_groups is not None and (group_ids is None or num_groups < 0):
        raise ValueError(f"group_advantages: num_groups counts the groups of group_ids, got {num_groups}")
    if group_ids is not None and (group_ids.shape != (num_rows,) or group_ids.is_floating_point()):
        raise ValueError(
            f"group_advantages: group_ids must be {num_rows} integers, one per reward, got {group_ids.dtype} "
            f"{list(group_ids.shape)}"
        )


def _dense_ids(ids: Tensor, num_groups: int | None) -> tuple[Tensor, int, str | None]:
    """Ids in `[0, number of groups)`, that number, and a group of one row by name if there is one to be seen."""
    if num_groups is not None and not can_look_at(ids):
        return ids.long().contiguous(), num_groups, None
    known, dense, counts = ids.unique(return_inverse=True, return_counts=True)
    alone = known[counts == 1]
    lonely = f"group {alone[0].item()} has one row" if alone.numel() else None
    if num_groups is None:
        return dense, known.shape[0], lonely
    if known.numel() and not 0 <= int(known[0]) <= int(known[-1]) < num_groups:
        raise ValueError(
            f"group_advantages: group_ids must be in [0, {num_groups}), the num_groups given, got {int(known[0])} to "
            f"{int(known[-1])}"
        )
    return ids.long().contiguous(), num_groups, lonely
