"""How the kernels that read rows of logits are launched: the tile of a step, and what else can be chosen.

Chosen by hand for every (vocabulary, bytes a logit, architecture), never by an autotune at first use. Origin, until a
measurement replaces it: bytes in flight. An H100 needs about 18 KiB of loads in flight on each multiprocessor to hide
0.7 us of latency at 3.35 TB/s; 16 warps with 4 loads of 16 bytes a thread have 32 KiB. More parts do not fit the
registers (`tests/kernels/kernel_resources.csv`). Small vocabularies take a tile of no more than about a quarter of a
row, so that a row's last tile, of which part is masked, is a small share of its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.jit import FUSED

ACCESS_BYTES = 16

# What a kernel does with a row: reads it, reads it and writes its gradient, or first the one and then the other.
Kind = Literal["scan", "write", "loss"]


class Choice(NamedTuple):
    """What can be chosen of a launch, whatever the dtype. `docs/kernels.md` says what each is for.

    Attributes:
        warps: of 32 threads, in a program.
        parts: accesses of 16 bytes that a thread has in flight.
        again: L2 policy of the first read of a row; "" for none.
        hold: so many tiles stay in registers, as they were read, from the first pass over a row to the second.
        stages: of a software pipeline through shared memory that the loops' loads take; None for none.
        early: a row's terms are loaded at once, rather than each only where the last one says that it counts.
        programs: on each multiprocessor, each of which takes one row after the other and writes a row's gradient while
            it scans the next; 0 for a program a row.
    """

    warps: int
    parts: int
    again: str = "evict_first"
    hold: int = 0
    stages: int | None = None
    early: bool = False
    programs: int = 0


# Columns up to: the choice.
ONCE: dict[int | None, Choice] = {4_096: Choice(4, 1), 32_768: Choice(8, 2), None: Choice(16, 4)}
# A kernel that reads its row a second time asks L2 to keep it, and wants the rows in flight to fit there. 32 warps of
# more than 32 registers are one program a multiprocessor: on an H100 132 rows of 304 KB, 40 MB of 50. Four parts would
# spill.
TWICE = {limit: choice._replace(again="evict_last") for limit, choice in (ONCE | {None: Choice(32, 2)}).items()}
TABLE: dict[Kind, dict[int | None, Choice]] = {"scan": ONCE, "write": ONCE, "loss": TWICE}

_tried: dict[Kind, Choice] = {}


@contextmanager
def trying(kind: Kind, choice: Choice) -> Iterator[None]:
    """Within, launches of that kind take this choice instead of the table's. For measuring; not for several threads."""
    _tried[kind] = choice
    try:
        yield
    finally:
        del _tried[kind]


class RowTile(NamedTuple):
    """`[parts, threads, vector]` columns a step, by `num_warps` warps; and the choice that it came from."""

    parts: int
    threads: int
    vector: int
    num_warps: int
    kind: Kind
    choice: Choice

    @property
    def columns(self) -> int:
        return self.parts * self.threads * self.vector

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of a kernel launch."""
        choice = self.choice
        switches: dict[str, Any] = {"STAGES": choice.stages}
        if self.kind != "write":
            switches["AGAIN"] = choice.again
        if self.kind == "loss" and not choice.programs:
            switches |= {"HOLD": choice.hold, "EARLY": choice.early}
        tile = {"PARTS": self.parts, "THREADS": self.threads, "VECTOR": self.vector}
        return switches | tile | {"num_warps": self.num_warps} | FUSED


def row_tile(vocab: int, itemsize: int, architecture: str, kind: Kind) -> RowTile:
    """The tile for rows of `vocab` logits of `itemsize` bytes."""
    choice = _tried.get(kind)
    if choice is None:
        choice = next(entry for limit, entry in TABLE[kind].items() if limit is None or vocab <= limit)
    warps, parts = choice.warps, choice.parts
    if architecture.startswith("gfx9"):  # warps of 64 threads, and 512 registers for the taking
        warps, parts = min(warps, 16), parts * max(1, warps // 16)
        return RowTile(parts, warps * 32, ACCESS_BYTES // itemsize, warps // 2, kind, choice)
    return RowTile(parts, warps * 32, ACCESS_BYTES // itemsize, warps, kind, choice)


def tile_for(logits: Tensor, vocab: int, kind: Kind) -> RowTile:
    """The tile for these logits on their device."""
    return row_tile(vocab, logits.dtype.itemsize, _architecture(logits.device), kind)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has."""
    if device.type == "cpu":  # in the interpreter, one after the other
        return 1
    return int(torch.get_device_module(device).get_device_properties(device).multi_processor_count)


@cache
def _architecture(device: torch.device) -> str:
    """ "gfx942" and so on; "" where it makes no difference."""
    if device.type != "cuda" or torch.version.hip is None:
        return ""
    return str(torch.cuda.get_device_properties(device).gcnArchName)
