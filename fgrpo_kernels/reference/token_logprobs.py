"""Specification of `token_logprobs`.

V vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgrpo_kernels.results import TokenLogprobs


def token_logprobs(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, inplace_backward: bool = False
) -> TokenLogprobs:
    """See `fgrpo_kernels.token_logprobs`. `inplace_backward` is about memory, not values: there is nothing to do."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    log_probs_V = torch.log_softmax(logits / temperature, dim=-1)
    logp = log_probs_V.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    # A logit of -inf has probability 0 and adds nothing to the entropy: 0 log 0 = 0.
    finite_log_probs_V = log_probs_V.masked_fill(log_probs_V == -torch.inf, 0.0)
    entropy = -(log_probs_V.exp() * finite_log_probs_V).sum(-1)
    return TokenLogprobs(logp, entropy)
