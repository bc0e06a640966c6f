"""Tile shape and number of warps for the kernels that read rows of logits.

Chosen by hand for every (vocabulary, bytes a logit, architecture), never by an autotune at first use. Origin, until a
measurement replaces it: bytes in flight. An H100 needs about 18 KiB of loads in flight on each multiprocessor to hide
0.7 us of latency at 3.35 TB/s; 16 warps with 4 loads of 16 bytes a thread have 32 KiB. More parts do not fit the
registers without spilling (`docs/kernel_resources.md`). Small vocabularies take a tile of no more than about a quarter
of a row, so that a row's last tile, of which part is masked, is a small share of its time.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.jit import INTERPRETED

ACCESS_BYTES = 16

# (columns up to, warps of 32 threads, parts)
BY_VOCABULARY = [
    (4_096, 4, 1),
    (32_768, 8, 2),
    (None, 16, 4),
]


class RowTile(NamedTuple):
    """`[parts, threads, vector]` columns a step, by `num_warps` warps."""

    parts: int
    threads: int
    vector: int
    num_warps: int

    @property
    def columns(self) -> int:
        return self.parts * self.threads * self.vector

    def arguments(self) -> dict[str, int]:
        """As keyword arguments of a kernel launch."""
        return {"PARTS": self.parts, "THREADS": self.threads, "VECTOR": self.vector, "num_warps": self.num_warps}


def row_tile(vocab: int, itemsize: int, warp_size: int) -> RowTile:
    """The tile for rows of `vocab` logits of `itemsize` bytes on a device with warps of `warp_size` threads."""
    _, warps, parts = next(entry for entry in BY_VOCABULARY if entry[0] is None or vocab <= entry[0])
    threads = warps * 32
    return RowTile(parts, threads, ACCESS_BYTES // itemsize, max(1, threads // warp_size))


def tile_for(logits: Tensor, vocab: int) -> RowTile:
    """The tile for these logits on their device."""
    return row_tile(vocab, logits.dtype.itemsize, _warp_size(logits.device))


@cache
def _warp_size(device: torch.device) -> int:
    if INTERPRETED or device.type != "cuda":
        return 32
    return torch.cuda.get_device_properties(device).warp_size
