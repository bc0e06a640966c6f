"""Log-probabilities and entropies straight from hidden states, without the logits of all rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels import reference
from fgrpo_kernels.checks import can_look_at, check_rows, check_targets, check_tensors
from fgrpo_kernels.derivatives import as_constant, first_derivative_only, needs_reference
from fgrpo_kernels.head.blocks import LogitsBlocks, Rows, all_rows, rows_where
from fgrpo_kernels.head.gradients import HeadGradients, scale_for
from fgrpo_kernels.head.rows import overwrite_with_gradient, write_stats
from fgrpo_kernels.head.tensors import Head, HeadOptions, HeadTensors, LowRank, make_head
from fgrpo_kernels.results import TokenLogprobs
from fgrpo_kernels.rowwise import RowStats


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    low_rank: LowRank | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    vocab_size: int | None = None,
    head_dtype: torch.dtype | None = None,
    row_mask: Tensor | None = None,
) -> TokenLogprobs:
    """`token_logprobs(head(hidden), targets)`, without ever holding the logits of all rows.

    The head is `z = hidden @ weight.T + hidden_A @ weight_B.T + bias`, then `z * logit_scale`, then
    `logit_softcap * tanh(z / logit_softcap)`; the softmax is that of `z / temperature`. `docs/lm_head.md` says which
    model needs what.

    The logits are formed in blocks of rows by the library's matrix product, in the inputs' dtype; everything after
    is float32 (float64 for float64 inputs). The backward pass forms them again, for the rows whose incoming gradient
    is not 0. Memory beyond inputs and gradients is that of one block: on a CPU at most 32 MiB (or 128 rows) and
    half as much again for 16-bit inputs, on a GPU at most a twentieth of all rows' float32 logits (or 256 rows); with
    `logit_softcap`, fewer rows in two buffers.

    Args:
        hidden: `[..., H]`, any floating dtype.
        weight: `[V, H]`, of that dtype (under autocast or with `head_dtype`: any). Frozen, it costs no product.
        targets: `[...]` int64 in `[0, vocab_size)`. Rows that `row_mask` leaves out may hold anything, such as -100.
        bias: `[V]`.
        low_rank: `(hidden_A [..., R], weight_B [V, R])`, a LoRA adapter of the head: `hidden_A` is
            `scaling * lora_A(dropout(hidden))`, computed outside so that A trains by autograd; `weight_B` is B.
            Cast to the head's dtype.
        temperature: divides the logits, last of all.
        logit_scale: multiplies the logits (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        logit_softcap: bounds the scaled logits (Gemma's `final_logit_softcapping`).
        vocab_size: columns from here on are padding of the vocabulary: no probability, no gradient.
        head_dtype: the head's products and logits are of this dtype, outside autocast: `torch.float32` is TRL's
            `cast_lm_head_to_fp32`. A weight of another dtype is copied to it.
        row_mask: `[...]`, bool or number: rows where it is 0 are left out before the first product. Their logp and
            entropy are 0, and so is their gradient. On a GPU, counting them waits for the device once.

    Returns:
        TokenLogprobs(logp, entropy), each `[...]`, in nats, differentiable in hidden, weight, bias and low_rank.

    Example:
        >>> hidden, weight = torch.eye(2), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> linear_token_logprobs(hidden, weight, torch.tensor([0, 1])).logp
        tensor([-0.6931, -0.1269])

    Raises:
        TypeError, ValueError: wrong types, devices, dtypes, shapes or options, by name.
        NotImplementedError: a gradient with `create_graph=True`.
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
    head = make_head("linear_token_logprobs", hidden, weight, targets, **of_head)
    check_tensors("linear_token_logprobs", {"row_mask": row_mask}, hidden=hidden)
    check_rows("linear_token_logprobs", "targets", targets, hidden.shape[:-1])
    targets_N, keep_N = as_constant(targets).reshape(-1).contiguous(), None
    if row_mask is not None:
        check_rows("linear_token_logprobs", "row_mask", row_mask, targets.shape)
        keep_N = row_mask.reshape(-1) != 0
    counted = targets_N[keep_N] if keep_N is not None and can_look_at(targets) else targets_N
    check_targets("linear_token_logprobs", counted, head.options.vocab_size)
    if needs_reference(hidden, weight, bias, *(low_rank or ())):
        return reference.linear_token_logprobs(hidden, weight, targets, **of_head, row_mask=row_mask)
    outputs = logprobs_of_head(head, targets_N, keep_N)
    return TokenLogprobs(*(x_N.view(targets.shape) for x_N in outputs))


def logprobs_of_head(head: Head, targets_N: Tensor, keep_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """logp and entropy `[N]`, 0 in rows that are not kept. Not checked."""
    outputs = head_logprobs(*head.tensors, targets_N, keep_N, *head.options)
    return outputs[0], outputs[1]


@torch.library.custom_op("fgrpo::linear_token_logprobs", mutates_args=())
def head_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    hidden_NR: Tensor | None,
    weight_VR: Tensor | None,
    targets_N: Tensor,
    keep_N: Tensor | None,
    temperature: float,
    softcap: float | None,
    vocab_size: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RowStats of the kept rows, 0 in the others: four times `[N]`. Differentiable in the first two."""
    tensors = HeadTensors(hidden_NH, weight_VH, bias_V, hidden_NR, weight_VR)
    head = Head(tensors, HeadOptions(temperature, softcap, vocab_size, dtype)).in_dtype_of_products()
    rows = all_rows(targets_N) if keep_N is None else rows_where(keep_N, targets_N)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        stats = stats_of_rows(head, rows)
    if rows.index_n is None:
        return stats
    whole = RowStats.zeros(targets_N.shape[0], dtype, hidden_NH.device)
    for x_N, x_n in zip(whole, stats, strict=True):
        x_N.index_copy_(0, rows.index_n, x_n)
    return whole


def stats_of_rows(head: Head, rows: Rows) -> RowStats:
    """Statistics `[n]` of the rows, and nothing else. The head is one `in_dtype_of_products`."""
    stats = RowStats.zeros(len(rows), head.options.dtype, rows.targets_n.device)
    for block in LogitsBlocks(head, rows):
        write_stats(stats.select(block.where), block, head.options.temperature)
    return stats


@head_logprobs.register_fake
def _(hidden_NH: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return RowStats.zeros(hidden_NH.shape[0], arguments[-1], hidden_NH.device)


@torch.library.custom_op("fgrpo::linear_token_logprobs_backward", mutates_args=())
def head_logprobs_backward(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    hidden_NR: Tensor | None,
    weight_VR: Tensor | None,
    targets_N: Tensor,
    keep_N: Tensor | None,
    logp_N: Tensor,
    entropy_N: Tensor,
    peak_N: Tensor,
    log_sum_N: Tensor,
    grad_logp_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    temperature: float,
    softcap: float | None,
    vocab_size: int,
    dtype: torch.dtype,
    needed: list[bool],
) -> list[Tensor]:
    """The gradients of the needed ones of the first five."""
    tensors = HeadTensors(hidden_NH, weight_VH, bias_V, hidden_NR, weight_VR)
    head = Head(tensors, HeadOptions(temperature, softcap, vocab_size, dtype)).in_dtype_of_products()
    grad_logp_N = torch.zeros_like(logp_N) if grad_logp_N is None else grad_logp_N.contiguous()
    kept_N, largest_N = grad_logp_N != 0, grad_logp_N.abs()
    if grad_entropy_N is not None:
        grad_entropy_N = grad_entropy_N.contiguous()
        kept_N, largest_N = kept_N | (grad_entropy_N != 0), torch.maximum(largest_N, grad_entropy_N.abs())
    rows = rows_where(kept_N if keep_N is None else kept_N & keep_N, targets_N)
    scale = scale_for(dtype, largest_N)
    if scale is not None:
        grad_logp_N, grad_entropy_N = grad_logp_N / scale, None if grad_entropy_N is None else grad_entropy_N / scale
    stats = RowStats(logp_N, entropy_N, peak_N, log_sum_N)
    gradients = HeadGradients(head, rows, needed, tensors.dtypes(), scale)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for block in LogitsBlocks(head, rows):
            n = rows.part(block.where)
            grad_entropy_n = None if grad_entropy_N is None else grad_entropy_N[n]
            overwrite_with_gradient(block, stats.select(n), temperature, grad_logp_N[n], grad_entropy_n)
            gradients.add(block)
    return [x for x in gradients.result() if x is not None]


@head_logprobs_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    return [torch.empty_like(x) for x, need in zip(arguments[:5], arguments[-1], strict=True) if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, temperature, softcap, vocab_size, dtype = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.options = (temperature, softcap, vocab_size, dtype)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


@first_derivative_only("linear_token_logprobs")
def _backward(
    ctx: Any, grad_logp_N: Tensor | None, grad_entropy_N: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:5])
    found = iter(head_logprobs_backward(*ctx.saved_tensors, grad_logp_N, grad_entropy_N, *ctx.options, needed))
    return (*(next(found) if need else None for need in needed), *[None] * 6)


head_logprobs.register_autograd(_backward, setup_context=_save)
