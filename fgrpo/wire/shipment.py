"""The global model on its way to those who may hold an earlier one: whole, as an update, or not at all.

A float32 vector goes as two of 16 bits, the upper and the lower halves: the upper are the model in bfloat16, of which a
round leaves most as it was, and `fgrpo_kernels.downlink` sends what changed. Nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fgrpo.errors import PayloadError
from fgrpo.wire.parameters import fingerprint
from fgrpo_kernels.downlink import SparseUpdate, apply_update, encode_update

Kind = Literal["held", "update", "whole"]


@dataclass(frozen=True)
class Shipment:
    """One model for one who holds none, another or this one.

    Attributes:
        kind: `held` brings nothing, `update` what changed since the model that it starts from, `whole` all of it.
        model: fingerprint of the parameters that come of it.
        parts: the bytes: none, those of the upper and of the lower halves' update, or of the float32 vector.
    """

    kind: Kind
    model: str
    parts: tuple[bytes, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.parts))

    def open(self, held_P: Tensor | None) -> Tensor:
        """Return the parameters, float32 [P].

        Args:
            held_P: the parameters at hand, if any.

        Raises:
            PayloadError: they cannot be had from what is at hand and what came.
        """
        if self.kind == "whole":
            (data,) = self.parts
            params_P = torch.frombuffer(bytearray(data), dtype=torch.float32)
        elif held_P is None:
            raise PayloadError("model: none is held here that an update could start from")
        else:
            params_P = held_P if self.kind == "held" else _updated(held_P, self.parts)
        if fingerprint(params_P) != self.model:
            raise PayloadError("model: what came of it is not the model that was meant; was another one held here?")
        return params_P


class Outbox:
    """Packs the latest model for everybody, each form once. It holds the model before, too, and nothing older."""

    def __init__(self, params_P: Tensor) -> None:
        self._params_P, self._previous_P = params_P, params_P
        self.model = self._previous = fingerprint(params_P)

    def load(self, params_P: Tensor) -> None:
        """Make it the latest model."""
        model = fingerprint(params_P)
        if model == self.model:
            return
        self._previous_P, self._previous = self._params_P, self.model
        self._params_P, self.model = params_P, model
        for form in ("_whole", "_update"):
            self.__dict__.pop(form, None)

    def pack(self, held: str) -> Shipment:
        """Return the latest model for one who holds the model of this fingerprint."""
        if held == self.model:
            return Shipment("held", self.model)
        return self._update if held == self._previous else self._whole

    @cached_property
    def _whole(self) -> Shipment:
        return Shipment("whole", self.model, (self._params_P.numpy().tobytes(),))

    @cached_property
    def _update(self) -> Shipment:
        pairs = zip(_halves(self._params_P), _halves(self._previous_P), strict=True)
        parts = tuple(encode_update(new_P, old_P).data for new_P, old_P in pairs)
        return Shipment("update", self.model, parts)


def _halves(params_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 16 bits of each value, as bfloat16 [P]."""
    pairs_P2 = params_P.view(torch.int16).view(-1, 2)
    return pairs_P2[:, 1].contiguous().view(torch.bfloat16), pairs_P2[:, 0].contiguous().view(torch.bfloat16)


def _updated(held_P: Tensor, parts: tuple[bytes, ...]) -> Tensor:
    try:
        pairs = zip(_halves(held_P), parts, strict=True)
        upper_P, lower_P = (apply_update(half_P, SparseUpdate(part)) for half_P, part in pairs)
    except ValueError as error:
        raise PayloadError(f"model: {error}") from None
    return torch.stack([lower_P.view(torch.int16), upper_P.view(torch.int16)], dim=1).view(torch.float32).flatten()
