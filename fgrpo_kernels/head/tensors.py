"""The LM head as an argument of the ops: what turns hidden states into the logits whose softmax is taken.

N rows   H hidden size   V vocabulary   R rank of a low-rank term
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.checks import check_floating, check_head, check_positive, check_tensors, real_vocab_size

LowRank = tuple[Tensor, Tensor]


class HeadTensors(NamedTuple):
    """The raw logits are `hidden_NH @ weight_VH.T + hidden_NR @ weight_VR.T + bias_V`.

    As the caller has them, in dtypes of their own; or, in a head that is `in_dtype_of_products`, all in that one.
    """

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    hidden_NR: Tensor | None
    weight_VR: Tensor | None

    def dtypes(self) -> HeadDtypes:
        return HeadDtypes._make(None if x is None else x.dtype for x in self)


class HeadDtypes(NamedTuple):
    """Of each tensor, None where there is none."""

    hidden_NH: torch.dtype | None
    weight_VH: torch.dtype | None
    bias_V: torch.dtype | None
    hidden_NR: torch.dtype | None
    weight_VR: torch.dtype | None


class HeadOptions(NamedTuple):
    """From raw logits z to probabilities: `softmax(softcap * tanh(z / softcap) / temperature)`, or without the tanh.

    A factor of the logits is divided into both numbers. Columns from `vocab_size` on take no part, and get gradient 0.
    Products and logits are of `dtype`.
    """

    temperature: float
    softcap: float | None
    vocab_size: int
    dtype: torch.dtype


class Head(NamedTuple):
    tensors: HeadTensors
    options: HeadOptions

    def in_dtype_of_products(self) -> Head:
        """The same with its tensors cast, those that need it.

        Not where autograd sees it: it would cast a gradient's sums back, through 16 bits to a float32 leaf.
        """
        dtype = self.options.dtype
        return self._replace(tensors=HeadTensors._make(None if x is None else x.to(dtype) for x in self.tensors))


def make_head(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    low_rank: LowRank | None,
    temperature: float,
    logit_scale: float,
    logit_softcap: float | None,
    vocab_size: int | None,
    head_dtype: torch.dtype | None,
) -> Head:
    """Check a public op's arguments, find the dtype of its products, and bring them to `[N, ...]` rows."""
    low: dict[str, object] = (
        {} if low_rank is None else dict(zip(("low_rank[0]", "low_rank[1]"), low_rank, strict=True))
    )
    check_tensors(op, {"bias": bias, **low}, hidden=hidden, weight=weight, targets=targets)
    check_floating(op, "hidden", hidden)
    check_positive(op, "temperature", temperature)
    check_positive(op, "logit_scale", logit_scale)
    if logit_softcap is not None:
        check_positive(op, "logit_softcap", logit_softcap)
    dtype = _product_dtype(op, hidden, head_dtype)
    check_head(op, hidden, weight, bias, one_dtype=dtype is None)
    hidden_NR, weight_VR = (None, None) if low_rank is None else _checked_low_rank(op, low_rank, hidden, weight)
    tensors = HeadTensors(hidden.reshape(-1, hidden.shape[-1]), weight, bias, hidden_NR, weight_VR)
    softcap = None if logit_softcap is None else logit_softcap / logit_scale
    vocab_size = real_vocab_size(op, vocab_size, weight.shape[0])
    return Head(
        tensors, HeadOptions(temperature / logit_scale, softcap, vocab_size, hidden.dtype if dtype is None else dtype)
    )


def _product_dtype(op: str, hidden: Tensor, head_dtype: torch.dtype | None) -> torch.dtype | None:
    """What to cast to: `head_dtype`, or what autocast would hand to a linear layer; None: nothing."""
    if head_dtype is not None:
        if not head_dtype.is_floating_point:
            raise TypeError(f"{op}: head_dtype must be a floating-point dtype such as torch.float32, got {head_dtype}")
        return head_dtype
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def _checked_low_rank(op: str, low_rank: LowRank, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    hidden_low, weight_low = low_rank
    rank = hidden_low.shape[-1]
    expected = (*hidden.shape[:-1], rank), (weight.shape[0], rank)
    if (tuple(hidden_low.shape), tuple(weight_low.shape)) != expected:
        raise ValueError(
            f"{op}: low_rank must be (hidden_A, weight_B) of shapes {list(hidden.shape[:-1])} + [r] and "
            f"[{weight.shape[0]}, r], such that hidden_A @ weight_B.T adds to the logits; got "
            f"{list(hidden_low.shape)} and {list(weight_low.shape)}"
        )
    return hidden_low.reshape(math.prod(expected[0][:-1]), rank), weight_low
