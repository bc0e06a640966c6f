"""FedExP: larger steps where the clients' deltas are diverse (arXiv 2301.09604)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fgrpo.records import StepHistory
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class FedExP:
    """`max(1, sum w_k |d_k|^2 / (2 |sum w_k d_k|^2))`."""

    def __call__(self, geometry: Geometry, weights: Mapping[str, float], history: StepHistory) -> float:
        return max(1.0, geometry.spread(weights) / 2)
