"""Specification of `grpo_loss`.

What is specified elsewhere: `policy_terms.py` (the loss as a function of log-probabilities and entropies, which rows
count, the metrics) and `objectives/`.
"""

from __future__ import annotations

from torch import Tensor

from fgrpo_kernels.kl import KL
from fgrpo_kernels.layout import flatten_terms
from fgrpo_kernels.objectives import Objective, PPOClip
from fgrpo_kernels.reference.token_logprobs import token_logprobs
from fgrpo_kernels.results import GRPOLoss
from fgrpo_kernels.rowwise import accumulation_dtype


def grpo_loss(
    logits: Tensor,
    targets: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    old_logp: Tensor | None = None,
    ref_logp: Tensor | None = None,
    policy_factor: Tensor | None = None,
    mask: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    objective: Objective = PPOClip(),  # noqa: B008  (frozen)
    beta: float = 0.0,
    kl: KL = "k3",
    entropy_coef: float = 0.0,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> GRPOLoss:
    """See `fgrpo_kernels.grpo_loss`."""
    terms = flatten_terms(
        "reference.grpo_loss",
        logits.shape[:-1],
        accumulation_dtype(logits.dtype),
        targets,
        advantages=advantages,
        weights=weights,
        old_logp=old_logp,
        ref_logp=ref_logp,
        policy_factor=policy_factor,
        mask=mask,
        sequence_ids=sequence_ids,
        objective=objective,
        beta=beta,
        kl=kl,
        entropy_coef=entropy_coef,
    )
    rows, terms = terms.informative_rows()
    logits_nV = logits.reshape(-1, logits.shape[-1])[rows, :vocab_size]
    logp_n, entropy_n = token_logprobs(logits_nV, targets.reshape(-1)[rows], temperature=temperature)
    return GRPOLoss(terms.loss(logp_n, entropy_n), terms.metrics(logp_n, entropy_n))
