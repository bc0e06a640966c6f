"""Every client counts the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.records import ClientHistory, Report
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class Uniform:
    """`w_k = 1/K`."""

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]:
        return [1 / len(reports)] * len(reports)
