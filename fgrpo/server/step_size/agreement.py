"""Large steps while clients' deltas agree with their own last ones, small ones when only noise is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fgrpo.records import StepHistory
from fgrpo.server.averages import mean_agreement, moved
from fgrpo.server.geometry import Geometry

DECAY = 0.5  # of the moving average: a mean over clients is less noisy than one client's, and steps must react


@dataclass(frozen=True)
class Agreement:
    """`max(1, spread / 2) * clamp(slope * c, least, 1)`; `c` is the moving average of the clients' mean own cosine.

    Half the spread, as in FedExP, undoes the division by K that a mean does to deltas which have nothing in common. The
    cosine is the part of a delta that is signal: the step that is best for a noisy estimate is in proportion to it. It
    falls, and turns negative, where steps go too far, so the step size finds its own level. While nobody has a past the
    factor is 1.
    """

    slope: float = 5.0
    least: float = 0.2

    def __call__(self, geometry: Geometry, weights: Mapping[str, float], history: StepHistory) -> float:
        smoothed = moved(history.agreement, mean_agreement(weights, geometry.agreement), DECAY)
        if smoothed is None:
            return 1.0
        return max(1.0, geometry.spread(weights) / 2) * max(self.least, min(1.0, self.slope * smoothed))
