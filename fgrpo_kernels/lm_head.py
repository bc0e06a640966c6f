"""Rows through the LM head a block at a time, forwards and backwards: `[N, V]` never exists.

N rows   n rows of a block   H hidden size   V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.rowwise import RowStats, accumulation_dtype, logits_gradient_, rows_per_block


class Head(NamedTuple):
    """The rows that count, and what turns them into logits: `hidden[rows] @ weight.T + bias`, all of one dtype.

    `weight` and `bias` may have more rows than the vocabulary; those take no part and get gradient 0.
    """

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    rows_n: Tensor  # distinct indices into hidden
    targets_n: Tensor  # of those rows
    temperature: float
    vocab_size: int


class Block(NamedTuple):
    """One block of the rows. The next block overwrites `logits_nV`."""

    where: slice  # into rows_n
    rows_n: Tensor
    hidden_nH: Tensor
    logits_nV: Tensor
    targets_n: Tensor


def head_for_autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast would hand to a linear layer; the arguments themselves where it is off."""
    device_type = hidden.device.type
    if not torch.is_autocast_enabled(device_type):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device_type)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def num_blocks(head: Head) -> int:
    """How many blocks `logits_blocks` will yield."""
    return -(-len(head.rows_n) // _block_rows(head))


def logits_blocks(head: Head) -> Iterator[Block]:
    """Form the logits block by block, in one buffer."""
    num_rows, step = len(head.rows_n), _block_rows(head)
    buffer = head.hidden_NH.new_empty(min(step, num_rows), head.vocab_size)
    weight_HV = head.weight_VH[: head.vocab_size].t()
    for start in range(0, num_rows, step):
        where = slice(start, min(start + step, num_rows))
        rows_n = head.rows_n[where]
        hidden_nH = head.hidden_NH[rows_n]
        logits_nV = buffer[: len(rows_n)]
        if head.bias_V is None:
            torch.mm(hidden_nH, weight_HV, out=logits_nV)
        else:  # one rounding to the logits' dtype, not two
            torch.addmm(head.bias_V[: head.vocab_size], hidden_nH, weight_HV, out=logits_nV)
        yield Block(where, rows_n, hidden_nH, logits_nV, head.targets_n[where])


class HeadGradients:
    """Accumulates the gradients of hidden, weight and bias, those that are needed, in float32 (or float64)."""

    def __init__(self, head: Head, needed: tuple[bool, bool, bool]) -> None:
        dtype = accumulation_dtype(head.hidden_NH.dtype)

        def zeros(x: Tensor | None, need: bool) -> Tensor | None:
            return torch.zeros_like(x, dtype=dtype) if need and x is not None else None

        self._head = head
        self.hidden_NH = zeros(head.hidden_NH, needed[0])
        self.weight_VH = torch.empty_like(head.weight_VH, dtype=dtype) if needed[1] else None
        if self.weight_VH is not None:  # the first block writes the rest, which spares a pass over [V, H]
            self.weight_VH[head.vocab_size if len(head.rows_n) else 0 :] = 0
        self.bias_V = zeros(head.bias_V, needed[2])

    def add(self, block: Block, stats: RowStats, grad_logp_n: Tensor, grad_entropy_n: Tensor | None) -> None:
        """Add a block's share, given the loss's gradients in its logp and entropy. Overwrites the block's logits."""
        # The gradients are brought to the order of 1 by a power of two while they are in the logits' dtype:
        # with weights of 1 / tokens, those of most of the vocabulary would be 0 in float16.
        scale = _power_of_two_near(grad_logp_n, grad_entropy_n)
        grad_nV = logits_gradient_(
            block.logits_nV,
            block.targets_n,
            stats,
            self._head.temperature,
            grad_logp_n / scale,
            None if grad_entropy_n is None else grad_entropy_n / scale,
        )
        vocabulary = slice(self._head.vocab_size)
        if self.hidden_NH is not None:
            self.hidden_NH[block.rows_n] = (grad_nV @ self._head.weight_VH[vocabulary]).to(scale.dtype).mul_(scale)
        if self.weight_VH is not None:
            scaled_nH = block.hidden_nH.to(scale.dtype) * scale
            is_first = block.where.start == 0
            self.weight_VH[vocabulary].addmm_(grad_nV.t().to(scale.dtype), scaled_nH, beta=0 if is_first else 1)
        if self.bias_V is not None:
            self.bias_V[vocabulary].add_(grad_nV.sum(0, dtype=scale.dtype) * scale)

    def result(self, upstream: Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients in the inputs' dtype, times `upstream`; the accumulators are given away."""

        def finish(gradient: Tensor | None) -> Tensor | None:
            if gradient is not None and upstream is not None:
                gradient.mul_(upstream)
            return None if gradient is None else gradient.to(self._head.hidden_NH.dtype)

        return finish(self.hidden_NH), finish(self.weight_VH), finish(self.bias_V)


def _block_rows(head: Head) -> int:
    return rows_per_block(len(head.rows_n), head.vocab_size, head.hidden_NH.dtype)


def _power_of_two_near(grad_logp_n: Tensor, grad_entropy_n: Tensor | None) -> Tensor:
    """0-d: the power of two at or just above the largest gradient; 1 where they are all 0 or not finite."""
    largest = grad_logp_n.abs().amax()
    if grad_entropy_n is not None:
        largest = torch.maximum(largest, grad_entropy_n.abs().amax())
    exponent = torch.frexp(largest).exponent.clamp(min=-100, max=100)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.where((largest > 0) & largest.isfinite(), scale, 1.0)
