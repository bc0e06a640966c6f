"""Weights by what taught something: completions in groups whose rewards differed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import normalised
from fgrpo.server.aggregation.limits import bounded
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class Informative:
    """`w_k ~ completions in groups with signal`, within the limits; MT-GRPO's sampler equalises it (arXiv 2602.05547).

    A group of equal rewards has advantages of 0 and moves nothing, so a client whose every group is such, because its
    task is solved or out of reach, would only shorten the mean. If nobody learned anything, all count the same.
    """

    cap: float = 0.5
    floor: float = 0.0

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]:
        return bounded(normalised([report.informative for report in reports]), self.cap, self.floor)
