"""Specification of `linear_token_logprobs`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fgrpo_kernels.reference.lm_head import head_logits
from fgrpo_kernels.reference.token_logprobs import token_logprobs
from fgrpo_kernels.results import TokenLogprobs


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    row_mask: Tensor | None = None,
    **head_options: Any,
) -> TokenLogprobs:
    """See `fgrpo_kernels.linear_token_logprobs`; `head_options` are those of `head_logits`."""
    if row_mask is None:
        logits = head_logits(hidden, weight, bias, low_rank, **head_options)[..., :vocab_size]
        return token_logprobs(logits, targets, temperature=temperature)
    keep = row_mask != 0
    low_rank = None if low_rank is None else (low_rank[0][keep], low_rank[1])
    logits = head_logits(hidden[keep], weight, bias, low_rank, **head_options)[..., :vocab_size]
    kept = token_logprobs(logits, targets[keep], temperature=temperature)
    return TokenLogprobs(*(x.new_zeros(targets.shape).masked_scatter(keep, x) for x in kept))
