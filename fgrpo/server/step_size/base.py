"""What a step size is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fgrpo.records import StepHistory
from fgrpo.server.geometry import Geometry


class StepSize(Protocol):
    """A pure function from how the deltas lie, their weights by client and the steps before to a factor of the step.

    `server.lr` multiplies it.
    """

    def __call__(self, geometry: Geometry, weights: Mapping[str, float], history: StepHistory) -> float: ...
