"""The LM head and the GRPO family's loss in one: the cost follows the rows that carry signal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrpo_kernels.checks import check_head, check_positive, check_rows, check_targets
from fgrpo_kernels.grpo_loss import real_vocab_size
from fgrpo_kernels.kl import KL
from fgrpo_kernels.layout import flatten_terms
from fgrpo_kernels.lm_head import Head, HeadGradients, head_for_autocast, logits_blocks, num_blocks
from fgrpo_kernels.objectives import Objective, PPOClip
from fgrpo_kernels.policy_terms import PolicyTerms
from fgrpo_kernels.results import GRPOLoss
from fgrpo_kernels.rowwise import RowStats, accumulation_dtype, row_stats


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
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
    """`grpo_loss(hidden @ weight.T + bias, ...)`, equal in loss, metrics and gradients, without `[N, V]`.

    Rows without signal are left out before the first matrix product. The logits are formed in blocks of rows; a
    token-level objective's gradient is known as soon as a block's logits are, so each block is turned into its
    gradient in place and multiplied on at once: three matrix products a row in all, two with a frozen weight, one
    under `torch.no_grad()`. A sequence-level objective first needs the log-probabilities of whole sequences; when
    the rows do not fit in one block, their logits are formed a second time.

    The gradients are computed here, in the forward pass, and scaled by the incoming gradient in the backward pass,
    which gives them away. A second backward pass (`retain_graph=True`) computes them again.

    Args:
        hidden: `[B, T, H]` (padded) or `[N, H]` (packed), any floating dtype.
        weight: `[V, H]`, of that dtype (under autocast: any). Its gradient is accumulated in float32, and not at all
            if it is frozen.
        bias: `[V]`.
        others: as in `grpo_loss`.

    Returns:
        GRPOLoss(loss, metrics), as `grpo_loss`.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or options, by name.
    """
    hidden, weight, bias = head_for_autocast(hidden, weight, bias)
    check_head("linear_grpo_loss", hidden, weight, bias)
    check_positive("linear_grpo_loss", "temperature", temperature)
    vocab_size = real_vocab_size("linear_grpo_loss", vocab_size, len(weight))
    terms = flatten_terms(
        "linear_grpo_loss",
        hidden.shape[:-1],
        accumulation_dtype(hidden.dtype),
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
    check_rows("linear_grpo_loss", "targets", targets, hidden.shape[:-1])
    rows, terms = terms.informative_rows()
    targets_n = targets.reshape(-1)[rows]
    check_targets("linear_grpo_loss", targets_n, vocab_size)

    hidden_NH = hidden.reshape(-1, hidden.shape[-1])
    grad_enabled = torch.is_grad_enabled()
    with torch.autocast(hidden.device.type, enabled=False):
        loss, logp_n, entropy_n = _LinearGRPOLoss.apply(
            hidden_NH, weight, bias, rows, targets_n, temperature, vocab_size, terms, grad_enabled
        )
    return GRPOLoss(loss, terms.metrics(logp_n, entropy_n))


class _LinearGRPOLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        rows_n: Tensor,
        targets_n: Tensor,
        temperature: float,
        vocab_size: int,
        terms: PolicyTerms,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = Head(hidden_NH, weight_VH, bias_V, rows_n, targets_n, temperature, vocab_size)
        if grad_enabled and any(ctx.needs_input_grad[:3]):
            stats, gradients = _stats_and_gradients(head, terms, ctx.needs_input_grad[:3])
            ctx.save_for_backward(hidden_NH, weight_VH, bias_V, rows_n, targets_n)
            ctx.gradients, ctx.temperature, ctx.vocab_size, ctx.terms = gradients, temperature, vocab_size, terms
        else:
            stats = _stats(head)
        ctx.mark_non_differentiable(stats.logp_n, stats.entropy_n)
        return terms.loss(stats.logp_n, stats.entropy_n), stats.logp_n, stats.entropy_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # an earlier backward pass has taken them
            hidden_NH, weight_VH, bias_V, rows_n, targets_n = ctx.saved_tensors
            head = Head(hidden_NH, weight_VH, bias_V, rows_n, targets_n, ctx.temperature, ctx.vocab_size)
            with torch.autocast(head.hidden_NH.device.type, enabled=False):
                _, gradients = _stats_and_gradients(head, ctx.terms, ctx.needs_input_grad[:3])
        return (*gradients.result(grad_loss), None, None, None, None, None, None)


def _stats(head: Head) -> RowStats:
    stats = RowStats.empty(len(head.rows_n), head.hidden_NH)
    for block in logits_blocks(head):
        stats.store(block.where, row_stats(block.logits_nV, block.targets_n, head.temperature))
    return stats


def _stats_and_gradients(
    head: Head, terms: PolicyTerms, needed: tuple[bool, bool, bool]
) -> tuple[RowStats, HeadGradients]:
    """Statistics of all rows, and gradients, from one formation of the logits wherever a block suffices."""
    gradients = HeadGradients(head, needed)
    if terms.objective.sequence_level and num_blocks(head) > 1:
        stats = _stats(head)
        grad_logp_n, grad_entropy_n = terms.gradients(stats.logp_n, stats.entropy_n)
        for block in logits_blocks(head):
            grad_entropy = None if grad_entropy_n is None else grad_entropy_n[block.where]
            gradients.add(block, stats.select(block.where), grad_logp_n[block.where], grad_entropy)
        return stats, gradients

    stats = RowStats.empty(len(head.rows_n), head.hidden_NH)
    for block in logits_blocks(head):
        part = row_stats(block.logits_nV, block.targets_n, head.temperature)
        stats.store(block.where, part)
        gradients.add(block, part, *terms.select(block.where).gradients(part.logp_n, part.entropy_n))
    return stats, gradients
