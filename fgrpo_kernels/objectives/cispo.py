"""CISPO (MiniMax-M1): a policy gradient whose importance weight is bounded instead of its gradient cut off."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.objectives.base import DeviceForm, Level, Tokens, bounded_exp, check_level, device_bounded_exp


@jit
def cispo(
    logp: tl.tensor,
    own_log_ratio: tl.tensor,
    log_ratio: tl.tensor,
    advantage: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    unused: tl.tensor,
    unused_too: tl.tensor,
) -> tl.tensor:
    """Triton form of `CISPO`. See `DeviceForm`."""
    ratio, _ = device_bounded_exp(log_ratio)
    slope = -tl.minimum(tl.maximum(ratio, low), high) * advantage
    return slope * logp, slope, 0.0, (ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0)


@dataclass(frozen=True)
class CISPO:
    """`l = -sg(clip(r, low, high)) * A * logp` with `r = exp(logp - old_logp)`: no token loses its gradient.

    Args:
        low: lower bound of the ratio itself, not a distance from 1. TRL has none, 0; verl has `1 - clip_ratio_low`.
        high: upper bound of the ratio, `math.inf` for none (TRL's `epsilon_high`, 5.0 in ScaleRL; verl's
            `1 + clip_ratio_high`).
        level: "token", or "sequence": the ratio is that of the sequence's mean log-ratio (see `PPOClip`).

    Example:
        >>> logits, targets, old_logp = torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]])
        >>> rows = (logits, targets, torch.tensor([1.0]), torch.full((1, 2), 0.5))
        >>> loss, _ = grpo_loss(*rows, old_logp=old_logp, objective=CISPO(high=5.0))
        >>> round(loss.item(), 4)
        1.7515
    """

    low: float = 0.0
    high: float = 5.0
    level: Level = "token"

    def __post_init__(self) -> None:
        check_level(self)
        if not (0 <= self.low <= self.high and self.low < math.inf and self.high > 0):
            raise ValueError(f"CISPO: low and high bound the ratio itself, 0 <= low <= high, got {self!r}")

    @property
    def sequence_level(self) -> bool:
        return self.level == "sequence"

    def device_form(self) -> DeviceForm:
        return DeviceForm("cispo", (self.low, self.high))

    def log_ratio(self, tokens: Tokens) -> Tensor:
        return tokens.log_ratio(self.level)

    def loss(self, tokens: Tokens) -> Tensor:
        bounded_N = bounded_exp(self.log_ratio(tokens).detach()).clamp(self.low, self.high)
        return -bounded_N * tokens.advantages_N * tokens.logp_N

    def clipped(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Tokens whose weight was bounded (their gradient stays)."""
        ratio_N = bounded_exp(self.log_ratio(tokens))
        advantages_N = tokens.advantages_N
        return (ratio_N < self.low) & (advantages_N < 0), (ratio_N > self.high) & (advantages_N > 0)
