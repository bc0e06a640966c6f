"""Weights by how much of a client's delta is signal, as its agreement with its own earlier deltas shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import normalised
from fgrpo.server.aggregation.limits import bounded
from fgrpo.server.averages import moved
from fgrpo.server.geometry import Geometry

# A delta of mere noise agrees with the last one within about this; it keeps nearly equal weights nearly equal where all
# deltas have become noise.
_NOISE = 0.02


@dataclass(frozen=True)
class Agreement:
    """`w_k ~ informative_k * (max(c_k, 0) + noise)`, within the limits; `c_k` is the moving average of own cosines.

    Local Adam makes a delta of noise as long as one that learned something, so neither lengths nor rewards tell them
    apart. Successive deltas of a client do: what they share is signal. A client without an earlier delta counts as the
    mean of those that have one.
    """

    cap: float = 0.5
    floor: float = 0.0
    decay: float = 0.7

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]:
        known = {}
        for report in reports:
            past = history.get(report.client)
            smoothed = moved(past.agreement if past else None, geometry.agreement.get(report.client), self.decay)
            if smoothed is not None:
                known[report.client] = max(smoothed, 0.0)
        usual = math.fsum(known.values()) / len(known) if known else 0.0
        shares = [report.informative * (known.get(report.client, usual) + _NOISE) for report in reports]
        return bounded(normalised(shares), self.cap, self.floor)
