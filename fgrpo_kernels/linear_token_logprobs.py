"""Log-probabilities and entropies straight from hidden states, without the logits of all rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrpo_kernels.checks import check_head, check_positive, check_rows, check_targets
from fgrpo_kernels.lm_head import Head, HeadGradients, head_for_autocast, logits_blocks
from fgrpo_kernels.results import TokenLogprobs
from fgrpo_kernels.rowwise import RowStats, row_stats, rows_with_gradient


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,
) -> TokenLogprobs:
    """`token_logprobs(hidden @ weight.T + bias, targets)`, without ever holding the logits of all rows.

    The logits are formed in blocks of rows by the library's matrix product, in the inputs' dtype; everything after
    is float32 (float64 for float64 inputs). The backward pass forms them again, for the rows whose incoming gradient
    is not 0. Memory beyond inputs and gradients: one block of at most 48 MiB (or 64 rows), half
    as much again for 16-bit inputs.

    Args:
        hidden: `[..., H]`, any floating dtype.
        weight: `[V, H]`, of that dtype (under autocast: any). Frozen, it costs no gradient product.
        targets: `[...]` int64 in `[0, V)`. Rows that `row_mask` leaves out may hold anything, such as -100.
        bias: `[V]`.
        temperature: divides the logits.
        row_mask: `[...]`, bool or number: rows where it is 0 are left out before the first product. Their logp and
            entropy are 0, and so is their gradient.

    Returns:
        TokenLogprobs(logp, entropy), each `[...]`, in nats, differentiable in hidden, weight and bias.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or options, by name.
    """
    hidden, weight, bias = head_for_autocast(hidden, weight, bias)
    check_head("linear_token_logprobs", hidden, weight, bias)
    check_rows("linear_token_logprobs", "targets", targets, hidden.shape[:-1])
    check_positive("linear_token_logprobs", "temperature", temperature)
    if row_mask is None:
        rows = torch.arange(targets.numel(), device=hidden.device)
    else:
        check_rows("linear_token_logprobs", "row_mask", row_mask, targets.shape)
        rows = row_mask.reshape(-1).nonzero().squeeze(1)
    targets_n = targets.reshape(-1)[rows]
    check_targets("linear_token_logprobs", targets_n, len(weight))

    with torch.autocast(hidden.device.type, enabled=False):
        outputs = _LinearTokenLogprobs.apply(
            hidden.reshape(-1, hidden.shape[-1]), weight, bias, rows, targets_n, temperature
        )
    if row_mask is not None:
        outputs = [x_n.new_zeros(targets.numel()).index_copy(0, rows, x_n) for x_n in outputs]
    return TokenLogprobs(*(x_N.view(targets.shape) for x_N in outputs))


class _LinearTokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        rows_n: Tensor,
        targets_n: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        stats = RowStats.empty(len(rows_n), hidden_NH)
        for block in logits_blocks(Head(hidden_NH, weight_VH, bias_V, rows_n, targets_n, temperature, len(weight_VH))):
            stats.store(block.where, row_stats(block.logits_nV, block.targets_n, temperature))
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, rows_n, targets_n, *stats)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return stats.logp_n, stats.entropy_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp_n: Tensor | None, grad_entropy_n: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, rows_n, targets_n, *saved = ctx.saved_tensors
        stats = RowStats(*saved)
        kept, grad_logp_n, grad_entropy_n = rows_with_gradient(stats, grad_logp_n, grad_entropy_n)
        head = Head(hidden_NH, weight_VH, bias_V, rows_n[kept], targets_n[kept], ctx.temperature, len(weight_VH))
        gradients = HeadGradients(head, ctx.needs_input_grad[:3])
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for block in logits_blocks(head):
                n = kept[block.where]
                grad_entropy = None if grad_entropy_n is None else grad_entropy_n[n]
                gradients.add(block, stats.select(n), grad_logp_n[n], grad_entropy)
        return (*gradients.result(), None, None, None)
