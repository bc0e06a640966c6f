"""`token_logprobs` on a GPU: one read of the logits forwards, one read and one write backwards.

N rows, of any strided leading dimensions that fold into two   V columns
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.launch_table import tile_for
from fgrpo_kernels.gpu.row_softmax import row_offset, row_statistics, write_row_gradient, write_zero_row
from fgrpo_kernels.jit import jit, tl

# T changes with every batch: a kernel compiled for one T must serve them all.
UNSPECIALISED = ["T"]


@jit(do_not_specialize=UNSPECIALISED)
def token_logprobs_kernel(
    logits_ptr: tl.tensor,
    stride_b: tl.tensor,
    stride_t: tl.tensor,
    T: tl.tensor,
    targets_ptr: tl.tensor,
    live_ptr: tl.tensor,
    logp_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    log_sum_ptr: tl.tensor,
    vocab: tl.tensor,
    inv_temperature: tl.tensor,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Program n: the statistics of row n, all 0 for a row that is not live."""
    row = tl.program_id(0).to(tl.int64)
    peak, log_sum, logp, entropy = 0.0, 0.0, 0.0, 0.0
    live = True
    if live_ptr is not None:
        live = tl.load(live_ptr + row) != 0
    if live:
        row_ptr = logits_ptr + row_offset(row, T, stride_b, stride_t)
        target = tl.load(targets_ptr + row).to(tl.int32)
        peak, log_sum, logp, entropy = row_statistics(row_ptr, target, vocab, inv_temperature, PARTS, THREADS, VECTOR)
    tl.store(logp_ptr + row, logp)
    tl.store(entropy_ptr + row, entropy)
    tl.store(peak_ptr + row, peak)
    tl.store(log_sum_ptr + row, log_sum)


@jit(do_not_specialize=UNSPECIALISED)
def token_logprobs_backward_kernel(
    logits_ptr: tl.tensor,
    stride_b: tl.tensor,
    stride_t: tl.tensor,
    grad_ptr: tl.tensor,
    grad_stride_b: tl.tensor,
    grad_stride_t: tl.tensor,
    T: tl.tensor,
    targets_ptr: tl.tensor,
    logp_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    log_sum_ptr: tl.tensor,
    grad_logp_ptr: tl.tensor,
    grad_entropy_ptr: tl.tensor,
    vocab: tl.tensor,
    columns: tl.tensor,
    inv_temperature: tl.tensor,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Program n: the gradient of row n, exactly 0 and without a read where its incoming gradients are 0."""
    row = tl.program_id(0).to(tl.int64)
    slope = 0.0
    if grad_logp_ptr is not None:
        slope = tl.load(grad_logp_ptr + row)
    entropy_slope = 0.0
    if grad_entropy_ptr is not None:
        entropy_slope = tl.load(grad_entropy_ptr + row)
    grad_row_ptr = grad_ptr + row_offset(row, T, grad_stride_b, grad_stride_t)
    if (slope != 0) | (entropy_slope != 0):
        write_row_gradient(
            logits_ptr + row_offset(row, T, stride_b, stride_t),
            grad_row_ptr,
            tl.load(targets_ptr + row).to(tl.int32),
            vocab,
            columns,
            tl.load(peak_ptr + row),
            tl.load(log_sum_ptr + row),
            tl.load(logp_ptr + row),
            tl.load(entropy_ptr + row),
            slope,
            entropy_slope,
            inv_temperature,
            grad_entropy_ptr is not None,
            PARTS,
            THREADS,
            VECTOR,
        )
    else:
        write_zero_row(grad_row_ptr, columns, PARTS, THREADS, VECTOR)


class Rows(NamedTuple):
    """Row `b * T + t` of a tensor begins `b * stride_b + t * stride_t` elements from its start."""

    tensor: Tensor
    stride_b: int
    stride_t: int
    T: int


def rows_of(x: Tensor) -> Rows:
    """`x` `[..., V]` as N rows with unit stride, without a copy where its leading dimensions fold into two."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.ndim == 2:
        return Rows(x, 0, x.stride(0), max(1, x.shape[0]))
    if x.ndim > 3:
        x = x.flatten(0, -3)  # a view where the strides allow it
    return Rows(x, x.stride(0), x.stride(1), max(1, x.shape[1]))


def logprobs_of_live_rows(
    logits: Tensor,
    targets_N: Tensor,
    live_N: Tensor | None,
    temperature: float,
    vocab_size: int,
    inplace_backward: bool = False,
) -> tuple[Tensor, Tensor]:
    """logp and entropy `[N]` of the rows of `logits` over its first `vocab_size` columns; 0 where not live."""
    logp_N, entropy_N, _, _ = token_logprobs_forward(
        logits, targets_N, live_N, temperature, vocab_size, inplace_backward
    )
    return logp_N, entropy_N


@torch.library.custom_op("fgrpo::token_logprobs", mutates_args=())
def token_logprobs_forward(
    logits: Tensor,
    targets_N: Tensor,
    live_N: Tensor | None,
    temperature: float,
    vocab_size: int,
    inplace_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(logp, entropy, peak, log_sum)`, each `[N]` float32; differentiable in the first two. See `row_statistics`."""
    outputs = _four_vectors(logits, targets_N)
    if targets_N.numel() > 0:
        x = rows_of(logits)
        with device_of(logits):
            token_logprobs_kernel[(targets_N.numel(),)](
                *x, targets_N.contiguous(), live_N, *outputs, vocab_size, 1.0 / temperature,
                **tile_for(logits, vocab_size).arguments(),
            )  # fmt: skip
    return outputs


@token_logprobs_forward.register_fake
def _(logits: Tensor, targets_N: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _four_vectors(logits, targets_N)


def _four_vectors(logits: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (torch.empty(targets_N.numel(), dtype=torch.float32, device=logits.device) for _ in range(4))
    return a, b, c, d


@torch.library.custom_op("fgrpo::token_logprobs_backward_", mutates_args={"grad_logits"})
def token_logprobs_backward_(
    grad_logits: Tensor,
    logits: Tensor,
    targets_N: Tensor,
    logp_N: Tensor,
    entropy_N: Tensor,
    peak_N: Tensor,
    log_sum_N: Tensor,
    grad_logp_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> None:
    """Write the logits' gradient to `grad_logits`, which is contiguous."""
    _launch_backward(
        rows_of(logits), rows_of(grad_logits), targets_N, (logp_N, entropy_N, peak_N, log_sum_N),
        grad_logp_N, grad_entropy_N, temperature, vocab_size,
    )  # fmt: skip


@token_logprobs_backward_.register_fake
def _(*_: Any) -> None:
    return None


@torch.library.custom_op("fgrpo::token_logprobs_backward_inplace", mutates_args={"logits"})
def token_logprobs_backward_inplace(
    logits: Tensor,
    targets_N: Tensor,
    logp_N: Tensor,
    entropy_N: Tensor,
    peak_N: Tensor,
    log_sum_N: Tensor,
    grad_logp_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> None:
    """Overwrite the logits with their gradient."""
    x = rows_of(logits)
    _launch_backward(
        x, x, targets_N, (logp_N, entropy_N, peak_N, log_sum_N), grad_logp_N, grad_entropy_N, temperature, vocab_size
    )
    if x.tensor.data_ptr() != logits.data_ptr():  # strides that do not fold into rows: it was a copy
        logits.copy_(x.tensor.view(logits.shape))


@token_logprobs_backward_inplace.register_fake
def _(*_: Any) -> None:
    return None


def _launch_backward(
    x: Rows,
    grads: Rows,
    targets_N: Tensor,
    saved: tuple[Tensor, ...],
    grad_logp_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> None:
    if targets_N.numel() == 0:
        return
    incoming = [None if x_N is None else x_N.contiguous() for x_N in (grad_logp_N, grad_entropy_N)]
    with device_of(x.tensor):
        token_logprobs_backward_kernel[(targets_N.numel(),)](
            *x[:3], *grads[:3], x.T, targets_N.contiguous(), *saved, *incoming,
            vocab_size, x.tensor.shape[-1], 1.0 / temperature,
            **tile_for(x.tensor, vocab_size).arguments(),
        )  # fmt: skip


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets_N, _, ctx.temperature, ctx.vocab_size, ctx.inplace = inputs
    ctx.save_for_backward(logits, targets_N, *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_logp_N: Tensor | None, grad_entropy_N: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    logits, *others = ctx.saved_tensors
    arguments = (logits, *others, grad_logp_N, grad_entropy_N, ctx.temperature, ctx.vocab_size)
    if ctx.inplace and not torch.compiler.is_compiling():
        # detach shares the version counter: a second backward finds the saved logits changed, and raises.
        grad_logits = logits.detach()
        token_logprobs_backward_inplace(grad_logits, *arguments[1:])
    else:
        grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        token_logprobs_backward_(grad_logits, *arguments)
    return grad_logits, None, None, None, None, None


token_logprobs_forward.register_autograd(_backward, setup_context=_save)
