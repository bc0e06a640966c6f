"""The soft cap of logits and its slope on a GPU, element by element."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import exp, expm1

BLOCK = 4096
NUM_WARPS = 8


@jit
def block_of_row(columns: tl.tensor, row_stride: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Offsets of this program's columns in a matrix of strided rows, and which of them exist."""
    parts = tl.cdiv(columns, BLOCK)
    program = tl.program_id(0)
    column = (program % parts) * BLOCK + tl.arange(0, BLOCK)
    return (program // parts).to(tl.int64) * row_stride + column, column < columns


@jit(do_not_specialize=["softcap"])
def softcap_kernel(
    x_ptr: tl.tensor,
    logits_ptr: tl.tensor,
    row_stride: tl.tensor,
    columns: tl.tensor,
    softcap: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """`logits = softcap * tanh(x / softcap)`."""
    where, exists = block_of_row(columns, row_stride, BLOCK)
    x = tl.load(x_ptr + where, mask=exists, other=0.0).to(tl.float32) / softcap
    # tanh |x| = (1 - e^-2|x|) / (1 + e^-2|x|), whose numerator keeps its digits for small x.
    rest = expm1(-2.0 * tl.abs(x))
    magnitude = -rest / (2.0 + rest)
    capped = softcap * tl.where(x < 0, -magnitude, magnitude)
    tl.store(logits_ptr + where, capped.to(logits_ptr.dtype.element_ty), mask=exists)


@jit(do_not_specialize=["softcap"])
def softcap_slope_kernel(
    x_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    row_stride: tl.tensor,
    columns: tl.tensor,
    softcap: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """`grad *= 1 - tanh(x / softcap)^2`, which is `4 e^-2|y| / (1 + e^-2|y|)^2` without the cancellation."""
    where, exists = block_of_row(columns, row_stride, BLOCK)
    x = tl.load(x_ptr + where, mask=exists, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + where, mask=exists, other=0.0).to(tl.float32)
    decay = exp(-2.0 * tl.abs(x) / softcap)
    grad *= 4.0 * decay / ((1.0 + decay) * (1.0 + decay))
    tl.store(grad_ptr + where, grad.to(grad_ptr.dtype.element_ty), mask=exists)


def apply_softcap(raw_nV: Tensor, softcap: float, out: Tensor) -> None:
    """Write the capped logits to `out`, whose rows have the stride of `raw_nV`'s."""
    _launch(softcap_kernel, raw_nV, out, softcap)


def apply_softcap_slope_(grad_nV: Tensor, raw_nV: Tensor, softcap: float) -> None:
    """Turn a gradient in capped logits into one in the raw ones."""
    _launch(softcap_slope_kernel, raw_nV, grad_nV, softcap)


def _launch(kernel: Any, raw_nV: Tensor, other_nV: Tensor, softcap: float) -> None:
    n, columns = raw_nV.shape
    assert raw_nV.stride() == other_nV.stride(), "buffers of one shape"
    if raw_nV.numel() > 0:
        programs = n * -(-columns // BLOCK)
        with device_of(raw_nV):
            kernel[(programs,)](
                raw_nV, other_nV, raw_nV.stride(0), columns, softcap, BLOCK=BLOCK, num_warps=NUM_WARPS
            )  # fmt: skip
