"""`token_logprobs` on a GPU: one read of the logits forwards, one read and one write backwards.

N rows, of any strided leading dimensions that fold into two   V columns
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.launch_table import tile_for
from fgrpo_kernels.gpu.row_gradient import write_row_gradient, write_zero_row
from fgrpo_kernels.gpu.row_softmax import row_offset, row_statistics
from fgrpo_kernels.jit import jit, tl

FourVectors = tuple[Tensor, Tensor, Tensor, Tensor]  # logp, entropy, peak, log_sum: each [N] float32

# T changes with every batch, and the strides with it: a kernel compiled for one T must serve them all.
UNSPECIALISED = ["T", "step_b", "step_t"]
UNSPECIALISED_WITH_GRADIENT = [*UNSPECIALISED, "grad_step_b", "grad_step_t"]


@jit(do_not_specialize=UNSPECIALISED)
def token_logprobs_kernel(
    logits_ptr: tl.tensor,
    step_b: tl.tensor,
    step_t: tl.tensor,
    unit: tl.tensor,
    T: tl.tensor,
    targets_ptr: tl.tensor,
    live_ptr: tl.tensor,
    logp_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    log_sum_ptr: tl.tensor,
    vocab: tl.tensor,
    inv_temperature: tl.tensor,
    AGAIN: tl.constexpr,
    STAGES: tl.constexpr,
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
        row_ptr = logits_ptr + row_offset(row, T, step_b, step_t, unit)
        target = tl.load(targets_ptr + row).to(tl.int32)
        peak, log_sum, logp, entropy = row_statistics(
            row_ptr, target, vocab, inv_temperature, (), AGAIN, STAGES, 0, PARTS, THREADS, VECTOR
        )
    tl.store(logp_ptr + row, logp)
    tl.store(entropy_ptr + row, entropy)
    tl.store(peak_ptr + row, peak)
    tl.store(log_sum_ptr + row, log_sum)


@jit(do_not_specialize=UNSPECIALISED_WITH_GRADIENT)
def token_logprobs_backward_kernel(
    logits_ptr: tl.tensor,
    step_b: tl.tensor,
    step_t: tl.tensor,
    unit: tl.tensor,
    grad_ptr: tl.tensor,
    grad_step_b: tl.tensor,
    grad_step_t: tl.tensor,
    grad_unit: tl.tensor,
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
    STAGES: tl.constexpr,
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
    grad_row_ptr = grad_ptr + row_offset(row, T, grad_step_b, grad_step_t, grad_unit)
    if (slope != 0) | (entropy_slope != 0):
        write_row_gradient(
            logits_ptr + row_offset(row, T, step_b, step_t, unit),
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
            (),
            grad_entropy_ptr is not None,
            STAGES,
            0,
            PARTS,
            THREADS,
            VECTOR,
        )
    else:
        write_zero_row(grad_row_ptr, columns, PARTS, THREADS, VECTOR)


class Rows(NamedTuple):
    """Row `b * T + t` of a tensor begins `(b * step_b + t * step_t) * unit` elements from its start.

    The unit is the strides' greatest common divisor: V, mostly, or with padding columns more. So where rows are aligned
    it says so, for every T.
    """

    tensor: Tensor
    step_b: int
    step_t: int
    unit: int
    T: int


def rows_of(x: Tensor) -> Rows:
    """`x` `[..., V]` as N rows with unit stride, without a copy where its leading dimensions fold into two."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.ndim > 3:
        x = x.flatten(0, -3)  # a view where the strides allow it
    stride_b, stride_t = (0, x.stride(0)) if x.ndim == 2 else x.stride()[:2]
    unit = max(1, math.gcd(stride_b, stride_t))
    return Rows(x, stride_b // unit, stride_t // unit, unit, max(1, x.shape[-2]))


def launch_forward(
    logits: Tensor, targets_N: Tensor, live_N: Tensor | None, temperature: float, vocab_size: int, out: FourVectors
) -> None:
    """Write logp, entropy, peak and log_sum of each row; see `row_statistics`."""
    if targets_N.numel() == 0:
        return
    x = rows_of(logits)
    with device_of(logits):
        token_logprobs_kernel[(targets_N.numel(),)](
            *x, targets_N.contiguous(), live_N, *out, vocab_size, 1.0 / temperature,
            **tile_for(logits, vocab_size, "scan").arguments(),
        )  # fmt: skip


def launch_backward(
    logits: Tensor,
    grad_logits: Tensor,
    targets_N: Tensor,
    saved: FourVectors,
    grad_logp_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> None:
    """Write the gradient to `grad_logits`, which is contiguous, or the logits themselves."""
    if targets_N.numel() == 0:
        return
    x = rows_of(logits)
    in_place = grad_logits.data_ptr() == logits.data_ptr()
    grads = x if in_place else rows_of(grad_logits)
    incoming = [None if x_N is None else x_N.contiguous() for x_N in (grad_logp_N, grad_entropy_N)]
    with device_of(logits):
        token_logprobs_backward_kernel[(targets_N.numel(),)](
            *x[:4], *grads[:4], x.T, targets_N.contiguous(), *saved, *incoming,
            vocab_size, logits.shape[-1], 1.0 / temperature,
            **tile_for(logits, vocab_size, "write").arguments(),
        )  # fmt: skip
    if in_place and x.tensor.data_ptr() != logits.data_ptr():  # strides that do not fold into rows: it was a copy
        grad_logits.copy_(x.tensor.view(logits.shape))
