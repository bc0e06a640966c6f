"""The LM head and the GRPO family's loss in one: the cost follows the rows that carry signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels import reference
from fgrpo_kernels.checks import check_rows, check_targets
from fgrpo_kernels.derivatives import as_constant, first_derivative_only, needs_reference
from fgrpo_kernels.head.blocks import LogitsBlocks, Rows, all_rows
from fgrpo_kernels.head.gradients import HeadGradients, scale_for
from fgrpo_kernels.head.rows import overwrite_with_gradient, write_stats_and_gradient
from fgrpo_kernels.head.tensors import Head, HeadTensors, LowRank, make_head
from fgrpo_kernels.kl import KL
from fgrpo_kernels.layout import flatten_terms
from fgrpo_kernels.linear_token_logprobs import logprobs_of_head, stats_of_rows
from fgrpo_kernels.objectives import Objective, PPOClip
from fgrpo_kernels.policy_terms import PolicyTerms
from fgrpo_kernels.results import GRPOLoss
from fgrpo_kernels.rowwise import RowStats, accumulation_dtype


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    low_rank: LowRank | None = None,
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
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    vocab_size: int | None = None,
    head_dtype: torch.dtype | None = None,
    all_informative: bool = False,
) -> GRPOLoss:
    """`grpo_loss(head(hidden), ...)`, equal in loss, metrics and gradients, without the logits of all rows.

    Rows without signal are left out before the first matrix product; on a GPU, counting them waits for the device once,
    unless `all_informative` says that there are none.
    The logits are formed in blocks of rows. A token-level objective's gradient is known as soon as a block's logits
    are, so each block is turned into its gradient in place and multiplied on at once: three matrix products a row in
    all, two with a frozen weight, one under `torch.no_grad()`. A sequence-level objective first needs the
    log-probabilities of whole sequences; when the rows do not fit in one block, their logits are formed a second time.

    The gradients are computed here, in the forward pass, and scaled by the incoming gradient in the backward pass,
    which gives them away. A second backward pass (`retain_graph=True`) computes them again. Under `torch.compile` the
    gradients are computed in the backward pass instead, with one more product.

    Args:
        hidden: `[B, T, H]` (padded) or `[N, H]` (packed), any floating dtype.
        weight: `[V, H]`, of that dtype (under autocast or with `head_dtype`: any). Its gradient is accumulated in
            float32, and not at all if it is frozen.
        bias, low_rank, temperature, logit_scale, logit_softcap, vocab_size, head_dtype: the head, as in
            `linear_token_logprobs`.
        all_informative: every row carries signal, as the caller knows (see "informative" in `grpo_loss`). A row that
            does not is computed all the same on a GPU, and an error on a CPU.
        others: as in `grpo_loss`.

    Returns:
        GRPOLoss(loss, metrics), as `grpo_loss`.

    Example:
        >>> hidden, weight = torch.zeros(2, 3, 4), torch.ones(5, 4, requires_grad=True)  # of the LM head
        >>> targets, mask = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> loss, metrics = linear_grpo_loss(hidden, weight, targets, torch.tensor([1.0, -1.0]), token_weights(mask))
        >>> loss.backward()
        >>> round(loss.item(), 4), round(metrics["entropy"].item(), 4)
        (-0.2, 1.6094)

    Raises:
        TypeError, ValueError: wrong types, devices, dtypes, shapes or options, by name.
        NotImplementedError: a gradient with `create_graph=True`, or a derivative asked for in a constant.
    """
    of_head: dict[str, Any] = {
        "bias": bias,
        "low_rank": low_rank,
        "temperature": temperature,
        "logit_scale": logit_scale,
        "logit_softcap": logit_softcap,
        "vocab_size": vocab_size,
        "head_dtype": head_dtype,
    }
    head = make_head("linear_grpo_loss", hidden, weight, targets, **of_head)
    of_terms: dict[str, Any] = {
        "advantages": advantages,
        "weights": weights,
        "old_logp": old_logp,
        "ref_logp": ref_logp,
        "policy_factor": policy_factor,
        "mask": mask,
        "sequence_ids": sequence_ids,
        "objective": objective,
        "beta": beta,
        "kl": kl,
        "entropy_coef": entropy_coef,
    }
    dtype = accumulation_dtype(head.options.dtype)
    terms = flatten_terms("linear_grpo_loss", hidden.shape[:-1], dtype, targets, **of_terms)
    check_rows("linear_grpo_loss", "targets", targets, hidden.shape[:-1])
    if needs_reference(hidden, weight, bias, *(low_rank or ())):
        return reference.linear_grpo_loss(hidden, weight, targets, **of_head, **of_terms)
    targets_N = as_constant(targets).reshape(-1)
    if torch.compiler.is_compiling():
        return _loss_of_logprobs(head, targets_N, terms)
    if all_informative:
        rows, terms = all_rows(targets_N.contiguous()), terms.every_row("linear_grpo_loss")
    else:
        rows, terms = _informative_rows(targets_N, terms)
    check_targets("linear_grpo_loss", rows.targets_n, head.options.vocab_size)
    grad_enabled = torch.is_grad_enabled()
    with torch.autocast(hidden.device.type, enabled=False):
        loss, logp_n, entropy_n = _LinearGRPOLoss.apply(*head.tensors, head.options, rows, terms, grad_enabled)
    return GRPOLoss(loss, terms.metrics(logp_n, entropy_n))


def _informative_rows(targets_N: Tensor, terms: PolicyTerms) -> tuple[Rows, PolicyTerms]:
    """Those that can change the loss or its gradient; on a GPU this waits for the device."""
    index_n, terms = terms.informative_rows()
    targets_n = targets_N[index_n]
    return (all_rows(targets_n) if len(index_n) == len(targets_N) else Rows(index_n, targets_n)), terms


def _loss_of_logprobs(head: Head, targets_N: Tensor, terms: PolicyTerms) -> GRPOLoss:
    """In ops that a compiler can see: the number of rows that count is known inside of one only."""
    live_N = terms.informative_mask()
    terms = terms.blanked(live_N)
    check_targets("linear_grpo_loss", targets_N, head.options.vocab_size)
    logp_N, entropy_N = logprobs_of_head(head, targets_N, live_N)
    return GRPOLoss(terms.loss(logp_N, entropy_N), terms.metrics(logp_N, entropy_N))


class _LinearGRPOLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, options, rows, terms, grad_enabled = arguments
        head = Head(HeadTensors(*tensors), options)
        if grad_enabled and any(ctx.needs_input_grad[:5]):
            stats, ctx.gradients = _stats_and_gradients(head, rows, terms, ctx.needs_input_grad[:5])
            ctx.save_for_backward(*tensors)
            ctx.constants = (options, rows, terms)
        else:
            stats = stats_of_rows(head.in_dtype_of_products(), rows)
        ctx.mark_non_differentiable(stats.logp_n, stats.entropy_n)
        return terms.loss(stats.logp_n, stats.entropy_n), stats.logp_n, stats.entropy_n

    @staticmethod
    @first_derivative_only("linear_grpo_loss")
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # an earlier backward pass has taken them
            options, rows, terms = ctx.constants
            head = Head(HeadTensors(*ctx.saved_tensors), options)
            with torch.autocast(grad_loss.device.type, enabled=False):
                _, gradients = _stats_and_gradients(head, rows, terms, ctx.needs_input_grad[:5])
        return (*gradients.result(grad_loss), None, None, None, None)


def _stats_and_gradients(
    head: Head, rows: Rows, terms: PolicyTerms, needed: Sequence[bool]
) -> tuple[RowStats, HeadGradients]:
    """Statistics of all rows, and gradients, from one formation of the logits wherever a block suffices."""
    dtypes, head = head.tensors.dtypes(), head.in_dtype_of_products()
    temperature = head.options.temperature
    scale = scale_for(head.options.dtype, _slope_bounds(terms))
    if scale is not None:  # the loss is linear in its weights
        terms = replace(terms, weights_N=terms.weights_N / scale)
    gradients = HeadGradients(head, rows, needed, dtypes, scale)
    blocks = LogitsBlocks(head, rows)
    if terms.objective.sequence_level and len(blocks) > 1:
        stats = stats_of_rows(head, rows)
        grad_logp_n, grad_entropy_n = terms.gradients(stats.logp_n, stats.entropy_n)
        for block in blocks:
            where = block.where
            grad_entropy = None if grad_entropy_n is None else grad_entropy_n[where]
            overwrite_with_gradient(block, stats.select(where), temperature, grad_logp_n[where], grad_entropy)
            gradients.add(block)
        return stats, gradients

    stats = RowStats.zeros(len(rows), head.options.dtype, rows.targets_n.device)
    for block in blocks:
        write_stats_and_gradient(stats.select(block.where), block, temperature, terms.select(block.where))
        gradients.add(block)
    return stats, gradients


def _slope_bounds(terms: PolicyTerms) -> Tensor:
    """`[n]`: the order of magnitude of the loss's gradient in each row's logp and entropy, known before the logits."""
    policy_n = terms.advantages_N if terms.policy_factor_N is None else terms.advantages_N * terms.policy_factor_N
    return terms.weights_N * (policy_n.abs() + abs(terms.beta) + abs(terms.entropy_coef))
