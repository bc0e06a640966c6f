"""Deltas to be encoded, and what is to be expected of their codes.

P parameters
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.codec.payloads import Codec

CLIENTS = 8
BLOCK = 64
CHECKED = 1 << 18  # parameters
CODE_BYTES: dict[Codec, float] = {"int8": 1.0, "int4": 0.5, "int2": 0.25, "bf16": 2.0, "none": 4.0}
QUANTISED: tuple[Codec, ...] = ("int8", "int4", "int2")
FLOATS: tuple[Codec, ...] = ("bf16", "none")
# Relative errors of Gaussian values. Four bits with one scale for all values, as piquant has it, give 0.2.
ERROR_BOUND: dict[Codec, float] = {"int8": 0.02, "int4": 0.25, "int2": 1.2, "bf16": 0.003, "none": 1e-6}


class Deltas(NamedTuple):
    deltas: list[Tensor]  # float32 [P] each
    weights: Tensor

    @property
    def size(self) -> int:
        return self.deltas[0].numel()


def source(size: int) -> Callable[..., Deltas]:
    """A function of a length and a number of clients; the values are drawn once."""

    @cache
    def drawn() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(size, generator=generator) for _ in range(CLIENTS)]

    def make(length: int = size, clients: int = CLIENTS) -> Deltas:
        weights = torch.arange(1.0, clients + 1).log().softmax(0)
        return Deltas([drawn()[k % CLIENTS][:length] for k in range(clients)], weights)

    return make


def bytes_a_value(codec: Codec, block: int) -> float:
    """Codes, and scales of 2 bytes a block."""
    return CODE_BYTES[codec] + (2 / block if codec.startswith("int") else 0)
