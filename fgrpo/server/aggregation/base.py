"""What a weighting is, and what several of them need. Nothing here knows tensors of the model's size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from fgrpo.records import ClientHistory, Report
from fgrpo.server.geometry import Geometry


class Weighting(Protocol):
    """A pure function from what a round's clients report, their pasts and how their deltas lie to each other.

    It returns one weight per report, each at least 0, together 1. Reordering the reports reorders the weights.
    """

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]: ...


Counted = Literal["rows", "sequences", "tokens", "informative"]


def sizes(reports: Sequence[Report], by: Counted) -> list[int]:
    """Return every report's `n_k`; by sequences where a client of the round has no number of rows, for all alike."""
    if by == "informative":
        return [report.informative for report in reports]
    if by == "tokens":
        return [report.tokens for report in reports]
    rows = [report.rows for report in reports if report.rows is not None]
    return rows if by == "rows" and len(rows) == len(reports) else [report.sequences for report in reports]


def normalised(shares: Sequence[float]) -> list[float]:
    """Return shares divided by their sum, which does not depend on their order; equal weights if they sum to 0."""
    largest = max(shares)  # divided by first, as the sum of large ones could overflow
    if largest <= 0:
        return [1 / len(shares)] * len(shares)
    relative = [share / largest for share in shares]
    total = math.fsum(relative)
    return [share / total for share in relative]
