"""Those that lag behind first, if they can learn (after MT-GRPO, arXiv 2602.05547)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import normalised
from fgrpo.server.aggregation.fgrpo import FGRPO
from fgrpo.server.aggregation.limits import bounded
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class Lagging:
    """`w_k ~ informative_k * exp(-gain_k / tau)`, within the limits: the sign of `fgrpo` turned round.

    Who gained least over its own past counts most, as MT-GRPO's weights follow the task that improves least; a client
    of which no group teaches anything cannot catch up and counts nothing.
    """

    gains: FGRPO = field(default_factory=FGRPO)
    cap: float = 0.5
    floor: float = 0.0

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]:
        gains = [self.gains.smoothed(report, history.get(report.client)) for report in reports]
        least = min(gains)
        shares = [
            report.informative * math.exp((least - gain) / self.gains.tau)
            for report, gain in zip(reports, gains, strict=True)
        ]
        return bounded(normalised(shares), self.cap, self.floor)
