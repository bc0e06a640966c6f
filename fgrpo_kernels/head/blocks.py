"""Rows through the LM head a block at a time: the logits of all rows never exist.

N rows   n rows of a block   H hidden size   V vocabulary   R rank of a low-rank term
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.head.softcap import apply_softcap
from fgrpo_kernels.head.tensors import Head
from fgrpo_kernels.rowwise import accumulation_dtype

# CPU: 170 rows of V = 49,152 in float32. More costs memory and gains little: 148, 184, 246 and 736 rows take the same
# time within 5%; 123 take 10 to 20% longer, 64 half as long again.
CPU_BLOCK_BYTES = 32 << 20
CPU_MIN_ROWS = 128
# GPU: the weight's gradient is read and written once a block, in float32: 8 bytes an element for 2 operations a row.
# An H100 (about 800 TFLOP/s and 3 TB/s) is bound by those bytes below some 1,000 rows, so no block need be larger;
# below 256 the products themselves slow down.
GPU_MAX_ROWS = 1024
GPU_MIN_ROWS = 256
GPU_ROW_MULTIPLE = 128  # of the products' tiles
ROW_ALIGNMENT_BYTES = 128  # rows of logits start where 16-byte accesses and the products want them


_tried: list[int] = []


@contextmanager
def trying_rows(rows: int) -> Iterator[None]:
    """Within, so many rows make a block on a GPU. For measuring; not for several threads."""
    _tried.append(rows)
    try:
        yield
    finally:
        _tried.pop()


@dataclass(frozen=True)
class Rows:
    """The rows that count: their distinct indices into hidden, None for all of them; and their targets."""

    index_n: Tensor | None
    targets_n: Tensor

    def __len__(self) -> int:
        return len(self.targets_n)

    def part(self, where: slice) -> Tensor | slice:
        """Index into hidden of some of them."""
        return where if self.index_n is None else self.index_n[where]


class Block(NamedTuple):
    """Consecutive rows of `Rows`. The next block overwrites the logits.

    `logits_nV` is what the softmax divides by the temperature; `raw_nV` the same before the soft cap, if there is one.
    """

    where: slice
    hidden_nH: Tensor
    hidden_nR: Tensor | None
    raw_nV: Tensor | None
    logits_nV: Tensor
    targets_n: Tensor


def all_rows(targets_N: Tensor) -> Rows:
    return Rows(None, targets_N)


def rows_where(keep_N: Tensor, targets_N: Tensor) -> Rows:
    """The rows where `keep_N` is not 0. Their number decides shapes: on a GPU this waits for the device, once."""
    index_n = keep_N.nonzero().squeeze(1)
    if len(index_n) == len(targets_N):  # slices of hidden instead of copies
        return all_rows(targets_N)
    return Rows(index_n, targets_N[index_n])


class LogitsBlocks:
    """The rows' logits block by block, formed in one buffer (two with a soft cap) by each iteration.

    How many there are is fixed when it is made.
    """

    def __init__(self, head: Head, rows: Rows) -> None:
        self._head, self._rows = head, rows
        options, hidden_NH = head.options, head.tensors.hidden_NH
        buffers = 1 if options.softcap is None else 2
        self._step = rows_per_block(len(rows), options.vocab_size, buffers, hidden_NH.dtype, hidden_NH.device)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._step)

    def __iter__(self) -> Iterator[Block]:
        hidden_NH, weight_VH, bias_V, hidden_NR, weight_VR = self._head.tensors
        softcap, V = self._head.options.softcap, self._head.options.vocab_size
        rows, step = self._rows, self._step
        raw = _buffer(hidden_NH, min(step, len(rows)), V)
        capped = None if softcap is None else _buffer(hidden_NH, min(step, len(rows)), V)
        for start in range(0, len(rows), step):
            where = slice(start, min(start + step, len(rows)))
            index, n = rows.part(where), where.stop - start
            hidden_nH, hidden_nR = hidden_NH[index], None if hidden_NR is None else hidden_NR[index]
            raw_nV = logits_nV = raw[:n, :V]
            if bias_V is None:
                torch.mm(hidden_nH, weight_VH[:V].t(), out=raw_nV)
            else:  # one rounding to the logits' dtype, not two
                torch.addmm(bias_V[:V], hidden_nH, weight_VH[:V].t(), out=raw_nV)
            if hidden_nR is not None and weight_VR is not None:
                raw_nV.addmm_(hidden_nR, weight_VR[:V].t())
            if softcap is not None and capped is not None:
                logits_nV = capped[:n, :V]
                apply_softcap(raw_nV, softcap, out=logits_nV)
            kept_raw_nV = None if softcap is None else raw_nV
            yield Block(where, hidden_nH, hidden_nR, kept_raw_nV, logits_nV, rows.targets_n[where])


def _buffer(like: Tensor, num_rows: int, vocab_size: int) -> Tensor:
    """Room for `[num_rows, vocab_size]`, with aligned rows on a GPU.

    What fills a row up is 0: products of 16 bits on a CPU with AMX read it too, times 0, which is NaN of a NaN.
    """
    columns = vocab_size
    if uses_triton(like):
        multiple = ROW_ALIGNMENT_BYTES // like.dtype.itemsize
        columns = -(-vocab_size // multiple) * multiple
    room = like.new_empty(num_rows, columns)
    if columns > vocab_size:
        room[:, vocab_size:] = 0
    return room


def rows_per_block(num_rows: int, vocab_size: int, buffers: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows of logits to form at a time, at least 1, in so many buffers of a block."""
    if device.type == "cpu":
        # 16-bit logits are counted as float32: their gradient is copied to it for the product that dW accumulates.
        limit = max(CPU_MIN_ROWS, CPU_BLOCK_BYTES // (buffers * vocab_size * accumulation_dtype(dtype).itemsize))
        blocks = max(1, -(-num_rows // limit))
        return max(1, -(-num_rows // blocks))  # blocks of equal size
    if _tried:
        return min(_tried[-1], max(1, num_rows))
    # A twentieth of what plain PyTorch takes for the logits of all rows in float32.
    limit = num_rows * accumulation_dtype(dtype).itemsize // (20 * buffers * dtype.itemsize)
    limit = min(GPU_MAX_ROWS, max(GPU_MIN_ROWS, limit))
    fitting = _free_bytes(device) // 4 // (buffers * vocab_size * dtype.itemsize)
    limit = max(1, min(limit, fitting))
    return max(1, limit // GPU_ROW_MULTIPLE * GPU_ROW_MULTIPLE or limit)


def _free_bytes(device: torch.device) -> int:
    """Memory of a device that an allocation could have; asking does not wait for the device."""
    if device.type != "cuda":
        free, _ = torch.get_device_module(device).mem_get_info(device)
        return int(free)
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
