"""The gradients of an LM head's inputs, gathered over blocks of rows.

N rows   n rows of a block   H hidden size   V vocabulary   R rank of a low-rank term
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu.grpo_loss import scale_directly_
from fgrpo_kernels.head.blocks import Block, Rows
from fgrpo_kernels.head.softcap import apply_softcap_slope_
from fgrpo_kernels.head.tensors import Head, HeadDtypes, HeadTensors
from fgrpo_kernels.rowwise import accumulation_dtype

# Of a 16-bit head, so many columns of the logits at a time are copied to float32.
COPIED_COLUMNS = 8192

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class HeadGradients:
    """Gradients of those head tensors that need them, in float32 (or float64) until `result`.

    The head is one `in_dtype_of_products`; `dtypes` are those of the caller's own tensors.
    `add` takes them as if the loss were divided by `scale`, a 0-d power of two (None: 1), which `result` makes up for.
    """

    def __init__(
        self,
        head: Head,
        rows: Rows,
        needed: Sequence[bool],
        dtypes: HeadDtypes,
        scale: Tensor | None,
    ) -> None:
        self._head, self._rows, self._scale, self._dtypes = head, rows, scale, dtypes
        tensors = head.tensors
        dtype = accumulation_dtype(tensors.hidden_NH.dtype)
        V = head.options.vocab_size

        def of_rows(x: Tensor | None, need: bool) -> Tensor | None:
            return x.new_empty(len(rows), x.shape[1], dtype=dtype) if need and x is not None else None

        def of_vocabulary(x: Tensor | None, need: bool) -> Tensor | None:
            if not need or x is None:
                return None
            total = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
            total[V if len(rows) else 0 :] = 0  # the first block writes the rest, which spares a pass
            return total

        self._hidden_nH, self._hidden_nR = of_rows(tensors.hidden_NH, needed[0]), of_rows(tensors.hidden_NR, needed[3])
        self._weight_VH, self._weight_VR, self._bias_V = (
            of_vocabulary(tensors[i], needed[i])
            for i in map(HeadTensors._fields.index, ("weight_VH", "weight_VR", "bias_V"))
        )

    def add(self, block: Block) -> None:
        """Add a block whose logits have been overwritten with their gradient."""
        grad_nV, first = block.logits_nV, block.where.start == 0
        options, tensors = self._head.options, self._head.tensors
        if block.raw_nV is not None:
            assert options.softcap is not None, "only a soft cap leaves raw logits"
            apply_softcap_slope_(grad_nV, block.raw_nV, options.softcap)
        vocabulary = slice(options.vocab_size)
        for total, weight, dtype in (
            (self._hidden_nH, tensors.weight_VH, self._dtypes.hidden_NH),
            (self._hidden_nR, tensors.weight_VR, self._dtypes.hidden_NR),
        ):
            if total is not None and weight is not None:
                _set_product(total[block.where], grad_nV, weight[vocabulary], unrounded=dtype == total.dtype)
        for total, hidden in ((self._weight_VH, block.hidden_nH), (self._weight_VR, block.hidden_nR)):
            if total is not None and hidden is not None:
                _add_product(total[vocabulary], grad_nV.t(), hidden, first)
        if self._bias_V is not None:
            column_sums = grad_nV.sum(0, dtype=self._bias_V.dtype)
            (self._bias_V[vocabulary].copy_ if first else self._bias_V[vocabulary].add_)(column_sums)

    def result(self, upstream: Tensor | None = None) -> Gradients:
        """Gradients in the caller's dtypes, times `upstream`, in the order of HeadTensors; totals are given away."""
        factor = upstream if self._scale is None else self._scale if upstream is None else self._scale * upstream
        dtypes, rows = self._dtypes, self._rows

        def finish(total: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
            return None if total is None else _times(total, factor).to(dtype)

        def spread(total: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
            gradient = finish(total, dtype)
            if gradient is None or rows.index_n is None:
                return gradient
            num_rows = len(self._head.tensors.hidden_NH)
            return gradient.new_zeros(num_rows, gradient.shape[1]).index_copy_(0, rows.index_n, gradient)

        return (
            spread(self._hidden_nH, dtypes.hidden_NH),
            finish(self._weight_VH, dtypes.weight_VH),
            finish(self._bias_V, dtypes.bias_V),
            spread(self._hidden_nR, dtypes.hidden_NR),
            finish(self._weight_VR, dtypes.weight_VR),
        )


def scale_for(dtype: torch.dtype, slopes: Tensor) -> Tensor | None:
    """0-d: the power of two at or just above the largest slope, for a dtype whose small numbers end early.

    With weights of 1 / tokens most of the vocabulary's gradients would be 0 in float16. Divided by this they are of the
    order of 1. None: not needed. Computed where the slopes are, without waiting for it.
    """
    if dtype != torch.float16 or slopes.numel() == 0:
        return None
    largest = slopes.abs().amax()
    exponent = torch.frexp(largest).exponent.clamp(min=-100, max=100)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.where((largest > 0) & largest.isfinite(), scale, 1.0)


def _times(total: Tensor, factor: Tensor | None) -> Tensor:
    """`total * factor`, in place; without a pass over it where the factor is 1, as it mostly is."""
    if factor is None or (factor.device.type == "cpu" and factor == 1):
        return total
    if uses_triton(total):
        scale_directly_(total, factor)
        return total
    return total.mul_(factor)


def _set_product(out: Tensor, a: Tensor, b: Tensor, unrounded: bool) -> None:
    """`out = a @ b`, for a float32 `out` of 16-bit matrices too.

    Without a product for that, as on a CPU, it is rounded to their dtype in between; or, `unrounded`, made from copies.
    """
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif _has_mixed_product(out.device, a.dtype):
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    elif unrounded:
        out.zero_()
        for part_a, part_b in zip(a.split(COPIED_COLUMNS, 1), b.split(COPIED_COLUMNS), strict=True):
            out.addmm_(part_a.to(out.dtype), part_b.to(out.dtype))
    else:
        out.copy_(a @ b)


def _add_product(out: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """`out += a @ b`, or `out = a @ b` if it is the first; a 16-bit product is never rounded to 16 bits."""
    if a.dtype != out.dtype and not _has_mixed_product(out.device, a.dtype):
        a, b = a.to(out.dtype), b.to(out.dtype)
    if first and a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif first:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    elif a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)


@cache
def _has_mixed_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the library multiplies 16-bit matrices into a float32 one there: torch 2.8 and later on CUDA."""
    if device.type != "cuda":
        return False
    x = torch.zeros(16, 16, device=device, dtype=dtype)
    out = torch.zeros(16, 16, device=device)
    try:
        torch.mm(x, x, out_dtype=torch.float32, out=out)
        torch.addmm(out, x, x, out_dtype=torch.float32, out=out)
    except (TypeError, RuntimeError):  # no such overload, or not for this device
        return False
    return True
