"""Weights by how much of a client's delta is signal, as its agreement with its own earlier deltas shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import normalised
from fgrpo.server.aggregation.fgrpo import FGRPO
from fgrpo.server.aggregation.limits import bounded
from fgrpo.server.averages import moved
from fgrpo.server.geometry import Geometry

# A delta of mere noise agrees with the last one within about this; it keeps nearly equal weights nearly equal where all
# deltas have become noise.
_NOISE = 0.02


@dataclass(frozen=True)
class Agreement:
    """`w_k ~ informative_k * (max(c_k, 0) + noise) * exp(min(gain_k, 0) / tau)`, within the limits.

    `c_k` is the moving average of own cosines. Gains are those that the server has measured itself; without them the
    factor is 1. A gain above 0 earns nothing more: what the server can measure on a few prompts is too uncertain to
    tell who learned more, but says in time who does harm.

    Local Adam makes a delta of noise as long as one that learned something, so neither lengths nor rewards tell them
    apart. Successive deltas of a client do: what they share is signal. A client without an earlier delta counts as the
    mean of those that have one.

    Args:
        tried: the rule whose gains are the server's own; None where it tries no delta out, as what clients say of
            their rewards and scores tells no noise from signal.
    """

    cap: float = 0.5
    floor: float = 0.0
    decay: float = 0.7
    tried: FGRPO | None = None

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
        shares = [
            report.informative * (known.get(report.client, usual) + _NOISE) * factor
            for report, factor in zip(reports, self._harmless(reports, history), strict=True)
        ]
        return bounded(normalised(shares), self.cap, self.floor)

    def _harmless(self, reports: Sequence[Report], history: Mapping[str, ClientHistory]) -> list[float]:
        """Return `exp(min(gain_k, 0) / tau)` of every report over the largest of them; 1 if nothing was tried out."""
        if self.tried is None:
            return [1.0] * len(reports)
        losses = [min(self.tried.smoothed(report, history.get(report.client)), 0.0) for report in reports]
        least = max(losses)  # subtracted so that a small tau cannot leave nobody
        return [math.exp((loss - least) / self.tried.tau) for loss in losses]
