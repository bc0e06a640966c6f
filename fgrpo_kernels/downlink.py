"""A lossless, sparse update from one bfloat16 model to the next: what a server sends to clients that hold the old one.

    update = encode_update(new, base)          # the server: 1 to 2 bytes a changed value, nothing for the others
    send(update.data)
    apply_update(base, SparseUpdate(data), out=base)   # a client: the new model, to the bit

In bfloat16 a step of a small learning rate leaves most weights as they are, bit for bit, and moves the others by one
unit in the last place. An update holds what changed, as distances in the order of numbers, and hashes of both models,
so that applying it to another base is an error. Every bit pattern is kept: NaN payloads, -0, subnormals. Format and
contract: `csrc/sparse_delta.h`.

Legend: P parameters. Tensors are bfloat16, 1-D, contiguous, on the CPU. Where `num_threads` is None, every core that
the process may run on is used; the bytes do not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fgrpo_kernels import _C
from fgrpo_kernels.codec.buffers import buffer_of, require_on_cpu, require_writable, thread_count

__all__ = ["SparseUpdate", "apply_update", "encode_update"]


@dataclass(frozen=True)
class SparseUpdate:
    """An update as it travels. Whatever the bytes are, `apply_update` either gives the model they name or raises."""

    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data)


def encode_update(new: Tensor, base: Tensor, *, num_threads: int | None = None) -> SparseUpdate:
    """The update from `base` to `new`, both bfloat16 [P].

    It takes at most 2 bytes a value and 0.02 % more, and 2 bytes for 16384 values of which none changed.
    Raises TypeError for a wrong type, dtype or device, ValueError for unequal sizes.

    Example:
        >>> base = torch.zeros(1000, dtype=torch.bfloat16)
        >>> new = base.index_fill(0, torch.tensor([7]), 1.0)
        >>> encode_update(new, base).nbytes < 100
        True
    """
    new = require_on_cpu("encode_update: new", new, torch.bfloat16)
    base = require_on_cpu("encode_update: base", base, torch.bfloat16)
    bound = _C.update_bound(new.numel())
    room = torch.empty(bound, dtype=torch.uint8, device="cpu")  # memory that is not written costs nothing
    length = _C.encode_update(
        buffer_of(new), buffer_of(base), buffer_of(room), thread_count("encode_update", num_threads)
    )
    return SparseUpdate(bytes(memoryview(buffer_of(room)).cast("B")[:length]))


def apply_update(
    base: Tensor, update: SparseUpdate, out: Tensor | None = None, *, num_threads: int | None = None
) -> Tensor:
    """The model that `update` was made for.

    base: bfloat16 [P], the model that it was made from
    out: bfloat16 [P] to write to, returned; a new tensor where None. It may be `base` itself, which then changes in
        place, but no other memory that overlaps it.

    Raises ValueError, naming the fault, where the bytes are damaged, cut or hostile, or made from another base. In
    place `base` is then as it was, for which the work is done twice; another `out` may hold anything.

    Example:
        >>> base, new = (torch.full((4,), x, dtype=torch.bfloat16) for x in (1.0, 2.0))
        >>> apply_update(base, encode_update(new, base))
        tensor([2., 2., 2., 2.], dtype=torch.bfloat16)
    """
    if not isinstance(update, SparseUpdate):
        raise TypeError(f"apply_update: update must be a SparseUpdate, got {type(update).__name__}")
    base = require_on_cpu("apply_update: base", base, torch.bfloat16)
    if out is None:
        out = torch.empty_like(base, requires_grad=False)
    out = require_on_cpu("apply_update: out", out, torch.bfloat16)
    require_writable("apply_update: out", out, torch.bfloat16)
    _C.apply_update(buffer_of(base), update.data, buffer_of(out), thread_count("apply_update", num_threads))
    return out
