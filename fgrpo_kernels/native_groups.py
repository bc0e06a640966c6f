"""What `reference.group_advantages` computes, by the C++ core: in one call instead of some ninety.

B completions   R reward functions   S groups
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgrpo_kernels.direct import is_plain
from fgrpo_kernels.reference.group_advantages import weighted_sum
from fgrpo_kernels.results import GroupAdvantages
from fgrpo_kernels.rowwise import accumulation_dtype

try:
    from fgrpo_kernels import _C
except ImportError:  # the ops by themselves, as the `kernels` package loads them
    serves_any = False
else:
    serves_any = True


def serves(rewards: Tensor) -> bool:
    """Whether the core reads these rewards: nothing traces them."""
    return serves_any and rewards.device.type == "cpu" and is_plain(rewards)


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor | None,
    num_groups: int,
    reward_weights: Tensor | None,
    scale: str,
    baseline: str,
    eps: float,
) -> GroupAdvantages:
    """See `fgrpo_kernels.group_advantages`; ids are int64 within `[0, num_groups)`, None for groups of one size."""
    rewards_B = rewards.double() if rewards.ndim == 1 else weighted_sum(rewards.double(), reward_weights)
    rewards_B = rewards_B.contiguous()
    advantages_B = torch.empty_like(rewards_B)
    mean, std = (rewards_B.new_empty(num_groups) for _ in range(2))
    degenerate = rewards_B.new_empty(num_groups, dtype=torch.bool)
    _C.group_advantages(
        (rewards_B.data_ptr(), len(rewards_B)),
        0 if group_ids is None else group_ids.data_ptr(),
        num_groups,
        (scale, baseline == "leave_one_out", eps),
        (advantages_B.data_ptr(), mean.data_ptr(), std.data_ptr(), degenerate.data_ptr()),
    )
    dtype = accumulation_dtype(rewards.dtype)
    return GroupAdvantages(advantages_B.to(dtype), mean.to(dtype), std.to(dtype), degenerate)
