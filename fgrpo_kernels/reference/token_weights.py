"""Specification of `token_weights`."""

from __future__ import annotations

import torch
from torch import Tensor


def token_weights(
    mask: Tensor,
    reduction: str = "dapo",
    *,
    num_tokens: float | Tensor | None = None,
    num_sequences: float | Tensor | None = None,
    max_length: int | None = None,
    divisor: float | Tensor = 1.0,
) -> Tensor:
    """See `fgrpo_kernels.token_weights`."""
    mask_BT = mask.to(torch.float32)
    weights_BT = mask_BT / divisor
    B, T = mask.shape
    sequences = B if num_sequences is None else num_sequences
    batch_tokens = mask_BT.sum().clamp(min=1.0)
    match reduction:
        case "grpo":
            return weights_BT / (mask_BT.sum(1, keepdim=True).clamp(min=1.0) * sequences)
        case "bnpo":
            return weights_BT / batch_tokens
        case "dr_grpo":
            return weights_BT / (sequences * (T if max_length is None else max_length))
        case "dapo":
            return weights_BT / (batch_tokens if num_tokens is None else num_tokens)
        case "luspo":
            return weights_BT / sequences
    raise AssertionError(f"unknown reduction {reduction!r}: checked by the public op")
