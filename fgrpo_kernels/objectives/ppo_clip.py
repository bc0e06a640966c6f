"""The clipped surrogate of PPO: GRPO, BNPO, Dr. GRPO, DAPO, LUSPO (token level) and GSPO (sequence level)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.objectives.base import DeviceForm, Level, Tokens, bounded_exp, check_level, device_bounded_exp


@jit
def ppo_clip(
    logp: tl.tensor,
    own_log_ratio: tl.tensor,
    log_ratio: tl.tensor,
    advantage: tl.tensor,
    lowest: tl.tensor,
    highest: tl.tensor,
    delta: tl.tensor,
    unused: tl.tensor,
) -> tl.tensor:
    """Triton form of `PPOClip`; `lowest` and `highest` bound the ratio. See `DeviceForm`."""
    ratio, slope = device_bounded_exp(log_ratio)
    free = tl.minimum(ratio, delta) * advantage
    clipped = tl.minimum(tl.maximum(ratio, lowest), highest) * advantage
    below, above = ratio < lowest, ratio > highest
    free_slope = tl.where(ratio <= delta, slope, 0.0)
    # Where both branches of the minimum are equal they have the same slope, except at delta's and the clip's corners.
    chosen_slope = tl.where(free <= clipped, free_slope, tl.where(below | above, 0.0, slope))
    return -tl.minimum(free, clipped), 0.0, -advantage * chosen_slope, below & (advantage < 0), above & (advantage > 0)


@dataclass(frozen=True)
class PPOClip:
    """`l = -min(min(r, delta) * A, clip(r, 1 - low, 1 + high) * A)`.

    Args:
        low: how far below 1 the ratio `r` may fall before the gradient of a negative advantage is cut off.
        high: how far above 1 it may rise before that of a positive advantage is (DAPO's "clip higher": 0.28).
        delta: upper bound of the ratio for negative advantages (two-sided clipping); None for none.
        level: "token": `r = exp(logp - old_logp)`; "sequence": the exponential of that difference's mean over
            the sequence (GSPO), with its gradient shared by all tokens of the sequence.

    Example:
        >>> logits, targets, old_logp = torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]])
        >>> rows = (logits, targets, torch.tensor([1.0]), torch.full((1, 2), 0.5))
        >>> loss, _ = grpo_loss(*rows, old_logp=old_logp, objective=PPOClip(high=0.28))
        >>> round(loss.item(), 4)
        -0.9798
    """

    low: float = 0.2
    high: float = 0.2
    delta: float | None = None
    level: Level = "token"

    def __post_init__(self) -> None:
        if self.low < 0 or self.high < 0:
            raise ValueError(
                f"PPOClip: low and high are distances from a ratio of 1 and may not be negative, got {self!r}"
            )
        if self.delta is not None and self.delta <= 0:
            raise ValueError(f"PPOClip: delta is an upper bound of the ratio and must be positive, got {self.delta}")
        check_level(self)

    @property
    def sequence_level(self) -> bool:
        return self.level == "sequence"

    def device_form(self) -> DeviceForm:
        return DeviceForm("ppo_clip", (1 - self.low, 1 + self.high, torch.inf if self.delta is None else self.delta))

    def log_ratio(self, tokens: Tokens) -> Tensor:
        return tokens.log_ratio(self.level)

    def loss(self, tokens: Tokens) -> Tensor:
        ratio_N = bounded_exp(self.log_ratio(tokens))
        free_N = ratio_N if self.delta is None else ratio_N.clamp(max=self.delta)
        clipped_N = ratio_N.clamp(1 - self.low, 1 + self.high)
        return -torch.minimum(free_N * tokens.advantages_N, clipped_N * tokens.advantages_N)

    def clipped(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        ratio_N = bounded_exp(self.log_ratio(tokens))
        low_N = (ratio_N < 1 - self.low) & (tokens.advantages_N < 0)
        high_N = (ratio_N > 1 + self.high) & (tokens.advantages_N > 0)
        return low_N, high_N
