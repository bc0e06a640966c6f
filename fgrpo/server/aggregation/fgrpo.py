"""FGRPO's rule: a client counts by its relative performance gain over its own past (after arXiv 2606.03094)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fgrpo.config import AggregationConfig
from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import Counted, normalised, sizes
from fgrpo.server.aggregation.gain import Measure, make_measure
from fgrpo.server.aggregation.limits import bounded
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class FGRPO:
    """`w_k ~ n_k * exp(clip(gain_k) / tau)`, within the limits. Why this form: `docs/aggregation.md`.

    Args:
        tau: temperature; at infinity this is fedavg.
        clip: gains are clipped to [-clip, clip].
        cap: the largest weight; raised to 1/K where fewer clients could not fill it.
        floor: the least weight, as a part of an equal share.
        scale: what makes a gain relative: `baseline` |B_k|; `deviation`, the client's running reward deviation D_k; or
            `error`, the standard error D_k / sqrt(sequences) of a round's mean, so that a gain within noise is small.
        smoothing: how much of a client's earlier gains stays in its gain, from 0 to below 1.
        n_k: what a client's share is counted by.
        measure: what gains are measured on; by default rewards.
    """

    tau: float = 1.0
    clip: float = 1.0
    cap: float = 0.5
    floor: float = 0.0
    scale: Literal["baseline", "deviation", "error"] = "baseline"
    smoothing: float = 0.0
    n_k: Counted = "rows"
    measure: Measure = field(default=make_measure(AggregationConfig(), None), compare=False)

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]:
        gains = [self.smoothed(report, history.get(report.client)) for report in reports]
        best = max(gains)  # subtracted so that a small tau cannot overflow
        counted = zip(sizes(reports, self.n_k), gains, strict=True)
        shares = [size * math.exp((gain - best) / self.tau) for size, gain in counted]
        return bounded(normalised(shares), self.cap, self.floor)

    def smoothed(self, report: Report, past: ClientHistory | None) -> float:
        """Return the moving average of a client's gains that ends with this round's."""
        before = 0.0 if past is None else past.gain
        return self.smoothing * before + (1 - self.smoothing) * self.gain(report, past)

    def gain(self, report: Report, past: ClientHistory | None) -> float:
        """Return `(R_k - B_k) / scale_k`, clipped; 0 where there is no baseline yet.

        Multiplying all of a client's rewards by a positive factor leaves it as it is.
        """
        standing = self.measure(report, past)
        if standing is None:
            return 0.0
        improvement = standing.now.mean - standing.baseline
        unit = abs(standing.baseline) if self.scale == "baseline" else standing.deviation
        if self.scale == "error":
            unit /= math.sqrt(standing.now.count)
        if unit == 0:  # from nothing to something is the largest gain there is
            return math.copysign(self.clip, improvement) if improvement else 0.0
        return max(-self.clip, min(self.clip, improvement / unit))
