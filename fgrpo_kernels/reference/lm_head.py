"""Specification of the LM head's options, in the order in which transformers' models and TRL apply them."""

from __future__ import annotations

import torch
from torch import Tensor


def head_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    *,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    head_dtype: torch.dtype | None = None,
) -> Tensor:
    """`[..., V]`: linear layer with bias and low-rank term, then the scale, then the cap. A temperature comes last."""
    autocast = head_dtype is None and torch.is_autocast_enabled(hidden.device.type)
    with torch.autocast(hidden.device.type, enabled=autocast):
        if head_dtype is not None:
            hidden, weight = hidden.to(head_dtype), weight.to(head_dtype)
            bias = None if bias is None else bias.to(head_dtype)
        logits = torch.nn.functional.linear(hidden, weight, bias)
        if low_rank is not None:
            hidden_low, weight_low = (x.to(logits.dtype) for x in low_rank)
            logits = logits + hidden_low @ weight_low.T
    if logit_scale != 1:
        logits = logits * logit_scale
    return logits if logit_softcap is None else logit_softcap * torch.tanh(logits / logit_softcap)
