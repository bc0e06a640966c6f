"""SAPO: a soft gate around a ratio of 1 instead of a clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import exp
from fgrpo_kernels.objectives.base import DeviceForm, Level, Tokens, bounded_exp, check_level, device_bounded_exp


@jit
def sapo(
    logp: tl.tensor,
    own_log_ratio: tl.tensor,
    log_ratio: tl.tensor,
    advantage: tl.tensor,
    tau_positive: tl.tensor,
    tau_negative: tl.tensor,
    unused: tl.tensor,
    unused_too: tl.tensor,
) -> tl.tensor:
    """Triton form of `SAPO`. See `DeviceForm`."""
    ratio, slope = device_bounded_exp(log_ratio)
    tau = tl.where(advantage > 0, tau_positive, tau_negative)
    x = tau * (ratio - 1)
    # 1 / (1 + e^-|x|) never overflows; gate * (1 - gate) is the same for x and -x.
    small = exp(-tl.abs(x))
    gate = tl.where(x >= 0, 1 / (1 + small), small / (1 + small))
    gate_slope = small / ((1 + small) * (1 + small))
    never = advantage != advantage
    return -4 / tau * gate * advantage, 0.0, -4 * gate_slope * slope * advantage, never, never


@dataclass(frozen=True)
class SAPO:
    """`l = -(4 / tau) * sigmoid(tau * (r - 1)) * A` with `r = exp(logp - old_logp)`.

    Args:
        tau_positive: how sharply the gradient fades away from `r = 1` where the advantage is positive.
        tau_negative: the same for the others; a little sharper, because their gradients raise unsampled tokens.
        level: "token", or "sequence": the ratio is that of the sequence's mean log-ratio (see `PPOClip`).

    Example:
        >>> logits, targets, old_logp = torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]])
        >>> rows = (logits, targets, torch.tensor([1.0]), torch.full((1, 2), 0.5))
        >>> loss, _ = grpo_loss(*rows, old_logp=old_logp, objective=SAPO())
        >>> round(loss.item(), 4)
        -2.2411
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05
    level: Level = "token"

    def __post_init__(self) -> None:
        check_level(self)
        if self.tau_positive <= 0 or self.tau_negative <= 0:
            raise ValueError(f"SAPO: both tau must be positive, got {self!r}")

    @property
    def sequence_level(self) -> bool:
        return self.level == "sequence"

    def device_form(self) -> DeviceForm:
        return DeviceForm("sapo", (self.tau_positive, self.tau_negative))

    def log_ratio(self, tokens: Tokens) -> Tensor:
        return tokens.log_ratio(self.level)

    def loss(self, tokens: Tokens) -> Tensor:
        ratio_N = bounded_exp(self.log_ratio(tokens))
        tau_N = torch.where(tokens.advantages_N > 0, self.tau_positive, self.tau_negative).to(ratio_N.dtype)
        return -4 / tau_N * torch.sigmoid(tau_N * (ratio_N - 1)) * tokens.advantages_N

    def clipped(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Nothing is cut off."""
        never_N = torch.zeros_like(tokens.advantages_N, dtype=torch.bool)
        return never_N, never_N
