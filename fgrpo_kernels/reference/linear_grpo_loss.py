"""Specification of `linear_grpo_loss`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels.reference.grpo_loss import grpo_loss
from fgrpo_kernels.reference.lm_head import head_logits
from fgrpo_kernels.results import GRPOLoss


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    head_dtype: torch.dtype | None = None,
    **arguments: Any,
) -> GRPOLoss:
    """See `fgrpo_kernels.linear_grpo_loss`; `arguments` are those of `grpo_loss`."""
    logits = head_logits(
        hidden, weight, bias, low_rank, logit_scale=logit_scale, logit_softcap=logit_softcap, head_dtype=head_dtype
    )
    return grpo_loss(logits, targets, advantages, weights, **arguments)
