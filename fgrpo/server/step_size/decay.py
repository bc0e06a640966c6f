"""Steps that shrink as the rounds go by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fgrpo.records import StepHistory
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class Decay:
    """`1 / sqrt(t)` in round `t`, counted from 1: as in the analysis of stochastic gradient descent."""

    def __call__(self, geometry: Geometry, weights: Mapping[str, float], history: StepHistory) -> float:
        return float((history.rounds + 1) ** -0.5)
