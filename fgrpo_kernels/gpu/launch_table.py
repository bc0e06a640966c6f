"""Tile shape and number of warps for the kernels that read rows of logits.

Chosen by hand for every (vocabulary, bytes a logit, architecture), never by an autotune at first use. Origin, until a
measurement replaces it: bytes in flight. An H100 needs about 18 KiB of loads in flight on each multiprocessor to hide
0.7 us of latency at 3.35 TB/s; 16 warps with 4 loads of 16 bytes a thread have 32 KiB. More parts do not fit the
registers (`tests/kernels/kernel_resources.csv`). Small vocabularies take a tile of no more than about a quarter of a
row, so that a row's last tile, of which part is masked, is a small share of its time.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.jit import FUSED

ACCESS_BYTES = 16

# Columns up to: (warps of 32 threads, parts).
READ_ONCE: dict[int | None, tuple[int, int]] = {4_096: (4, 1), 32_768: (8, 2), None: (16, 4)}
# A kernel that reads its row a second time wants the rows in flight to fit the L2 cache. 32 warps of more than 32
# registers are one program a multiprocessor: on an H100 132 rows of 304 KB, 40 MB of 50. Four parts would spill.
READ_TWICE = READ_ONCE | {None: (32, 2)}


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
        tile = {"PARTS": self.parts, "THREADS": self.threads, "VECTOR": self.vector}
        return tile | {"num_warps": self.num_warps} | FUSED


def row_tile(vocab: int, itemsize: int, architecture: str, *, read_twice: bool = False) -> RowTile:
    """The tile for rows of `vocab` logits of `itemsize` bytes."""
    table = READ_TWICE if read_twice else READ_ONCE
    warps, parts = next(entry for limit, entry in table.items() if limit is None or vocab <= limit)
    if architecture.startswith("gfx9"):  # warps of 64 threads, and 512 registers for the taking
        warps, parts = min(warps, 16), parts * max(1, warps // 16)
        return RowTile(parts, warps * 32, ACCESS_BYTES // itemsize, warps // 2)
    return RowTile(parts, warps * 32, ACCESS_BYTES // itemsize, warps)


def tile_for(logits: Tensor, vocab: int, *, read_twice: bool = False) -> RowTile:
    """The tile for these logits on their device."""
    return row_tile(vocab, logits.dtype.itemsize, _architecture(logits.device), read_twice=read_twice)


@cache
def _architecture(device: torch.device) -> str:
    """ "gfx942" and so on; "" where it makes no difference."""
    if device.type != "cuda" or torch.version.hip is None:
        return ""
    return str(torch.cuda.get_device_properties(device).gcnArchName)
