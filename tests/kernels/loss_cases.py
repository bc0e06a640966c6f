"""Realistic inputs for the loss tests, and TRL's formulas written out by hand, with no code shared with the package."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fgrpo_kernels import grpo_loss, reference, token_weights

B, T, V, H = 6, 9, 37, 12


@dataclass(frozen=True)
class Case:
    hidden_BTH: Tensor
    weight_VH: Tensor
    bias_V: Tensor
    targets_BT: Tensor
    advantages_B: Tensor
    mask_BT: Tensor
    old_logp_BT: Tensor
    ref_logp_BT: Tensor
    factor_BT: Tensor

    @property
    def logits(self) -> Tensor:
        return self.hidden_BTH @ self.weight_VH.T + self.bias_V

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh leaves of hidden, weight and bias."""
        return tuple(x.clone().requires_grad_() for x in (self.hidden_BTH, self.weight_VH, self.bias_V))


def make_case(dtype: torch.dtype = torch.float64, seed: int = 2) -> Case:
    """Ragged completions with a hole, one fully masked, one of advantage 0; off-policy enough for every clip regime."""
    rng = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    hidden, weight, bias = randn(B, T, H), randn(V, H) * 0.5, randn(V) * 0.3
    targets = torch.randint(V, (B, T), generator=rng)
    targets[0, 0], targets[0, 1] = 0, V - 1
    mask = torch.arange(T) < torch.tensor([9, 7, 4, 1, 0, 8])[:, None]
    mask[0, 3] = False
    advantages = torch.tensor([1.3, -0.7, 0.4, -1.1, 2.0, 0.0], dtype=torch.float64)
    logp = (hidden @ weight.T + bias).log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    old, ref = logp + 0.3 * randn(B, T), logp + 0.2 * randn(B, T)

    ratio, sign = (logp - old).exp()[mask], advantages[:, None].expand(B, T)[mask].sign()
    regimes = {(int(s), int(r > 1.28) - int(r < 0.8)) for s, r in zip(sign, ratio, strict=True)}
    assert regimes >= {(s, regime) for s in (-1, 1) for regime in (-1, 0, 1)}, "a clip regime is missing from the case"

    factor = torch.rand(B, T, generator=rng, dtype=torch.float64) * 2
    factor[1, 2] = 0
    tensors = (hidden, weight, bias, targets, advantages, mask, old, ref, factor)
    return Case(*(x.to(dtype) if x.is_floating_point() else x for x in tensors))


def trl_loss(
    logp: Tensor,
    entropy: Tensor,
    case: Case,
    reduction: str,
    *,
    level: str = "token",
    delta: float | None = None,
    beta: float = 0.0,
    bias_correction: bool = False,
    factor: Tensor | None = None,
    entropy_coef: float = 0.0,
    max_length: int = T,
) -> Tensor:
    """TRL 1.16's loss (clip 0.2 and 0.28), with the entropy bonus reduced like the rest of the loss."""
    mask = case.mask_BT.to(logp.dtype)
    log_ratio = logp - case.old_logp_BT
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1))[:, None]
    ratio = torch.exp(log_ratio)
    capped = ratio if delta is None else torch.clamp(ratio, max=delta)
    A = case.advantages_B[:, None]
    loss = -torch.min(capped * A, torch.clamp(ratio, 0.8, 1.28) * A)
    if factor is not None:
        loss = loss * factor
    if beta:
        d = case.ref_logp_BT - logp
        kl = torch.exp(d) - d - 1
        loss = loss + beta * (kl * ratio if bias_correction else kl)
    loss = (loss - entropy_coef * entropy) * mask
    if reduction == "grpo":
        return (loss.sum(-1) / mask.sum(-1).clamp(min=1)).mean()
    if reduction == "luspo":
        return loss.sum(-1).mean()
    if reduction == "dr_grpo":
        return loss.sum() / (len(loss) * max_length)
    return loss.sum() / mask.sum().clamp(min=1)  # bnpo; dapo on one device


OPS = [pytest.param(grpo_loss, id="op"), pytest.param(reference.grpo_loss, id="reference")]


def arguments_of(case, reduction="dapo", **changes):
    arguments = {
        "logits": case.logits.detach().clone().requires_grad_(),
        "targets": case.targets_BT,
        "advantages": case.advantages_B,
        "weights": token_weights(case.mask_BT, reduction),
        "old_logp": case.old_logp_BT,
    }
    return arguments | changes


def loss_and_gradient(op, **arguments):
    loss, metrics = op(**arguments)
    loss.backward()
    return loss.detach(), arguments["logits"].grad, metrics
