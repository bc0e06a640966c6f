"""Specification of `partial_token_stats`.

V columns of a shard of the vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgrpo_kernels.results import PartialTokenStats


def partial_token_stats(
    logits_shard: Tensor, targets: Tensor, vocab_start: int, *, temperature: float = 1.0
) -> PartialTokenStats:
    """See `fgrpo_kernels.partial_token_stats`."""
    if logits_shard.dtype != torch.float64:
        logits_shard = logits_shard.float()
    scaled = logits_shard / temperature
    is_target = torch.arange(scaled.shape[-1], device=scaled.device) == (targets - vocab_start).unsqueeze(-1)
    peak = torch.nn.functional.pad(scaled.detach(), (0, 1), value=-torch.inf).amax(-1)  # a shard may have no columns
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    shifted = scaled - peak.unsqueeze(-1)
    absent = is_target | (scaled == -torch.inf)
    exps = shifted.exp().masked_fill(absent, 0.0)
    dot = (exps * shifted.masked_fill(absent, 0.0)).sum(-1)
    target = torch.where(is_target, scaled, 0.0).sum(-1)
    return PartialTokenStats(peak, exps.sum(-1), dot, torch.where(is_target.any(-1), target, -torch.inf))
