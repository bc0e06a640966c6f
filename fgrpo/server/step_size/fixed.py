"""The same step size in every round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fgrpo.records import StepHistory
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class Fixed:
    """1."""

    def __call__(self, geometry: Geometry, weights: Mapping[str, float], history: StepHistory) -> float:
        return 1.0
