"""The soft cap of logits, `softcap * tanh(x / softcap)`, and its slope, on blocks of logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu import softcap as gpu
from fgrpo_kernels.rowwise import accumulation_dtype, slices


def apply_softcap(raw_nV: Tensor, softcap: float, out: Tensor) -> None:
    """Write the capped logits to `out`, of the same shape and strides. The arithmetic is float32 or float64."""
    if uses_triton(raw_nV):
        gpu.apply_softcap(raw_nV, softcap, out)
        return
    for rows, work in _work_slices(raw_nV):
        out[rows] = work.copy_(raw_nV[rows]).div_(softcap).tanh_().mul_(softcap)


def apply_softcap_slope_(grad_nV: Tensor, raw_nV: Tensor, softcap: float) -> None:
    """Turn a gradient in capped logits into one in the raw ones: times `1 - tanh(x / softcap)^2`."""
    if uses_triton(raw_nV):
        gpu.apply_softcap_slope_(grad_nV, raw_nV, softcap)
        return
    for rows, decay in _work_slices(raw_nV):
        # 4 e^-2|y| / (1 + e^-2|y|)^2: under a cap, 1 - tanh^2 has lost its digits.
        decay.copy_(raw_nV[rows]).abs_().mul_(-2 / softcap).exp_()
        grad_nV[rows] = (decay.mul_(4) / (decay / 4).add_(1).square_()).mul_(grad_nV[rows])


def _work_slices(x_nV: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices over the rows, each with a work buffer of its shape."""
    work = x_nV.new_empty(0, x_nV.shape[1], dtype=accumulation_dtype(x_nV.dtype))
    for rows in slices(len(x_nV), x_nV):
        size = rows.stop - rows.start
        if size > len(work):
            work = torch.empty_like(x_nV[rows], dtype=work.dtype, memory_format=torch.contiguous_format)
        yield rows, work[:size]
