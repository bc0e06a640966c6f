"""Tile shape and number of warps for the kernels that read rows of logits.

Chosen by hand for every (vocabulary, bytes a logit, architecture), never by an autotune at first use. Origin, until a
measurement replaces it: bytes in flight. An H100 needs about 18 KiB of loads in flight on each multiprocessor to hide
0.7 us of latency at 3.35 TB/s; 16 warps with 4 loads of 16 bytes a thread have 32 KiB. More parts do not fit the
registers (`docs/kernel_resources.md`). Small vocabularies take a tile of no more than about a quarter
of a row, so that a row's last tile, of which part is masked, is a small share of its time.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

ACCESS_BYTES = 16

# Columns up to: (warps of 32 threads, parts). "sm_80" stands for capability 8.x and so on.
BY_VOCABULARY: dict[int | None, tuple[int, int]] = {4_096: (4, 1), 32_768: (8, 2), None: (16, 4)}
# Where the compiler keeps to 64 registers a thread and four parts would spill.
FEWER_REGISTERS = BY_VOCABULARY | {None: (32, 2)}
BY_ARCHITECTURE = {"sm_80": FEWER_REGISTERS}


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


def row_tile(vocab: int, itemsize: int, architecture: str) -> RowTile:
    """The tile for rows of `vocab` logits of `itemsize` bytes."""
    table = BY_ARCHITECTURE.get(architecture, BY_VOCABULARY)
    warps, parts = next(entry for limit, entry in table.items() if limit is None or vocab <= limit)
    warp_size = 64 if architecture.startswith("gfx9") else 32
    return RowTile(parts, warps * 32, ACCESS_BYTES // itemsize, warps * 32 // warp_size)


def tile_for(logits: Tensor, vocab: int) -> RowTile:
    """The tile for these logits on their device."""
    return row_tile(vocab, logits.dtype.itemsize, _architecture(logits.device))


@cache
def _architecture(device: torch.device) -> str:
    """ "sm_90", "gfx942", or "" where it makes no difference."""
    if device.type != "cuda":
        return ""
    properties = torch.cuda.get_device_properties(device)
    return properties.gcnArchName.split(":")[0] if torch.version.hip else f"sm_{properties.major}0"
