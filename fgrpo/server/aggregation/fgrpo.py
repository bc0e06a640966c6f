"""FGRPO's rule: a client counts by its relative performance gain over its own past (after arXiv 2606.03094)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import Counted, normalised, sizes


@dataclass(frozen=True)
class FGRPO:
    """`w_k ~ n_k * exp(clip(gain_k) / tau)`, no weight above the cap. Why this form: `docs/aggregation.md`.

    Args:
        tau: temperature; at infinity this is fedavg.
        clip: gains are clipped to [-clip, clip].
        cap: the largest weight; raised to 1/K where fewer clients could not fill it.
        scale: what makes a gain relative: `baseline` |B_k|, or `deviation`, the client's running reward deviation.
        n_k: what a client's share is counted by.
    """

    tau: float = 1.0
    clip: float = 1.0
    cap: float = 0.5
    scale: Literal["baseline", "deviation"] = "baseline"
    n_k: Counted = "rows"

    def __call__(self, reports: Sequence[Report], history: Mapping[str, ClientHistory]) -> list[float]:
        gains = [self.gain(report, history.get(report.client)) for report in reports]
        best = max(gains)  # subtracted so that a small tau cannot overflow
        counted = zip(sizes(reports, self.n_k), gains, strict=True)
        shares = [size * math.exp((gain - best) / self.tau) for size, gain in counted]
        return capped(normalised(shares), self.cap)

    def gain(self, report: Report, past: ClientHistory | None) -> float:
        """Return `(R_k - B_k) / scale_k`, clipped; 0 for a client without a past.

        Multiplying all of a client's rewards by a positive factor leaves it as it is.
        """
        if past is None:
            return 0.0
        improvement = report.reward_mean - past.baseline
        unit = abs(past.baseline) if self.scale == "baseline" else past.deviation
        if unit == 0:  # from nothing to something is the largest gain there is
            return math.copysign(self.clip, improvement) if improvement else 0.0
        return max(-self.clip, min(self.clip, improvement / unit))


def capped(weights: Sequence[float], cap: float) -> list[float]:
    """Return weights of which none exceeds the cap; what is cut off goes to the others in proportion."""
    if cap * len(weights) <= 1:
        return [1 / len(weights)] * len(weights)
    result, full = list(weights), set[int]()
    while over := {k for k, weight in enumerate(result) if weight > cap} - full:
        full |= over
        below = [k for k in range(len(weights)) if k not in full]
        result = [cap] * len(weights)
        for k, share in zip(below, normalised([weights[k] for k in below]), strict=True):
            result[k] = share * (1 - cap * len(full))
    return result
