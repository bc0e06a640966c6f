"""GMPO: the geometric mean of a sequence's token ratios, each clipped before the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.objectives.base import DeviceForm, Tokens, bounded_exp, device_bounded_exp


@jit
def gmpo(
    logp: tl.tensor,
    own_log_ratio: tl.tensor,
    log_ratio: tl.tensor,
    advantage: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    unused: tl.tensor,
    unused_too: tl.tensor,
) -> tl.tensor:
    """Triton form of `GMPO`. See `DeviceForm`."""
    ratio, slope = device_bounded_exp(log_ratio)
    below, above = (own_log_ratio < -low) & (advantage < 0), (own_log_ratio > high) & (advantage > 0)
    return -advantage * ratio, 0.0, -advantage * slope, below, above


@jit
def held_log_ratio(
    log_ratio: tl.tensor,
    advantage: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    unused: tl.tensor,
    unused_too: tl.tensor,
) -> tl.tensor:
    """What `GMPO` gathers: a token's log-ratio, held on the side that its advantage asks for, and the slope of that."""
    held = tl.where(advantage >= 0, tl.minimum(log_ratio, high), tl.maximum(log_ratio, -low))
    # Minimum and maximum drop a NaN, which must not hide here.
    return tl.where(log_ratio != log_ratio, log_ratio, held), tl.where(held == log_ratio, 1.0, 0.0)


@dataclass(frozen=True)
class GMPO:
    """`l = -A * exp(mean over the sequence of the clipped log-ratios)`, verl's `geo_mean`.

    A token's log-ratio is held at `high` where the advantage is positive, and at `-low` where it is negative; the
    other side is free, as in PPO.

    Args:
        low, high: bounds of the log-ratio, in nats (0.4 in the paper).

    Example:
        >>> logits, targets, old_logp = torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]])
        >>> rows = (logits, targets, torch.tensor([1.0]), torch.full((1, 2), 0.5))
        >>> loss, _ = grpo_loss(*rows, old_logp=old_logp, objective=GMPO())
        >>> round(loss.item(), 4)
        -1.0069
    """

    low: float = 0.4
    high: float = 0.4

    def __post_init__(self) -> None:
        if self.low < 0 or self.high < 0:
            raise ValueError(f"GMPO: low and high are bounds of |log r| and may not be negative, got {self!r}")

    @property
    def sequence_level(self) -> bool:
        return True

    def device_form(self) -> DeviceForm:
        return DeviceForm("gmpo", (self.low, self.high))

    def log_ratio(self, tokens: Tokens) -> Tensor:
        log_ratio_N = tokens.log_ratio("token")
        clipped_N = log_ratio_N.clamp(-self.low, self.high)
        held_N = torch.where(
            tokens.advantages_N >= 0, torch.minimum(log_ratio_N, clipped_N), torch.maximum(log_ratio_N, clipped_N)
        )
        return tokens.sequence_mean(held_N)

    def loss(self, tokens: Tokens) -> Tensor:
        return -tokens.advantages_N * bounded_exp(self.log_ratio(tokens))

    def clipped(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        log_ratio_N, advantages_N = tokens.log_ratio("token"), tokens.advantages_N
        return (log_ratio_N < -self.low) & (advantages_N < 0), (log_ratio_N > self.high) & (advantages_N > 0)
