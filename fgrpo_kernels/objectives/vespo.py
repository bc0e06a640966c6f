"""VESPO: a policy gradient weighted by a smooth function of the whole sequence's importance weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import exp
from fgrpo_kernels.objectives.base import DeviceForm, Tokens

# As TRL: a token's log-ratio, and the sequence's log-weight.
TOKEN_BOUND = 20.0
LOWEST_LOG_WEIGHT, HIGHEST_LOG_WEIGHT = math.log(1e-8), 20.0


@jit
def vespo(
    logp: tl.tensor,
    own_log_ratio: tl.tensor,
    log_weight: tl.tensor,
    advantage: tl.tensor,
    k_positive: tl.tensor,
    lambda_positive: tl.tensor,
    k_negative: tl.tensor,
    lambda_negative: tl.tensor,
) -> tl.tensor:
    """Triton form of `VESPO`. See `DeviceForm`."""
    log_weight = tl.minimum(tl.maximum(log_weight, -18.420680743952367), 20.0)
    k = tl.where(advantage >= 0, k_positive, k_negative)
    sharpness = tl.where(advantage >= 0, lambda_positive, lambda_negative)
    slope = -exp(sharpness + k * log_weight - sharpness * exp(log_weight)) * advantage
    never = advantage != advantage
    return slope * logp, slope, 0.0, never, never


@jit
def bounded_log_ratio(
    log_ratio: tl.tensor,
    advantage: tl.tensor,
    k_positive: tl.tensor,
    lambda_positive: tl.tensor,
    k_negative: tl.tensor,
    lambda_negative: tl.tensor,
) -> tl.tensor:
    """What `VESPO` gathers; no gradient goes through it."""
    bounded = tl.minimum(tl.maximum(log_ratio, -20.0), 20.0)
    return tl.where(log_ratio != log_ratio, log_ratio, bounded), 0.0


@dataclass(frozen=True)
class VESPO:
    """`l = -sg(phi) * A * logp`, `phi = w^k * exp(lambda * (1 - w))`, `log w` the sequence's summed log-ratio.

    To correct for a sampler that differs from `old_logp`'s policy, pass the sampler's log-probabilities as `old_logp`:
    the correction belongs inside `w`, and no `policy_factor` does the same.

    Args:
        k_positive, lambda_positive: shape of `phi` for advantages of 0 and more.
        k_negative, lambda_negative: for negative ones.

    Example:
        >>> logits, targets, old_logp = torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]])
        >>> rows = (logits, targets, torch.tensor([1.0]), torch.full((1, 2), 0.5))
        >>> loss, _ = grpo_loss(*rows, old_logp=old_logp, objective=VESPO())
        >>> round(loss.item(), 4)
        1.0155
    """

    k_positive: float = 2.0
    lambda_positive: float = 3.0
    k_negative: float = 3.0
    lambda_negative: float = 2.0

    def __post_init__(self) -> None:
        if min(self.k_positive, self.lambda_positive, self.k_negative, self.lambda_negative) < 0:
            raise ValueError(f"VESPO: k and lambda may not be negative, got {self!r}")

    @property
    def sequence_level(self) -> bool:
        return True

    def device_form(self) -> DeviceForm:
        return DeviceForm("vespo", (self.k_positive, self.lambda_positive, self.k_negative, self.lambda_negative))

    def log_ratio(self, tokens: Tokens) -> Tensor:
        """Each token's own: the sequence's weight is no importance ratio once it went through `phi`."""
        return tokens.log_ratio("token")

    def loss(self, tokens: Tokens) -> Tensor:
        log_ratio_N = (tokens.logp_N.detach() - tokens.old_logp_N).clamp(-TOKEN_BOUND, TOKEN_BOUND)
        log_weight_N = tokens.sequence_sum(log_ratio_N).clamp(LOWEST_LOG_WEIGHT, HIGHEST_LOG_WEIGHT)
        positive_N = tokens.advantages_N >= 0
        k_N = torch.where(positive_N, self.k_positive, self.k_negative)
        lambda_N = torch.where(positive_N, self.lambda_positive, self.lambda_negative)
        phi_N = torch.exp(lambda_N + k_N * log_weight_N - lambda_N * log_weight_N.exp())
        return -phi_N * tokens.advantages_N * tokens.logp_N

    def clipped(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Nothing is cut off."""
        never_N = torch.zeros_like(tokens.advantages_N, dtype=torch.bool)
        return never_N, never_N
