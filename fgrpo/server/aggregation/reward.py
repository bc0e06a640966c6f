"""Weights by raw reward: the obvious rule, and the one that reward scales mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import Counted, normalised, sizes
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class Reward:
    """`w_k ~ n_k * max(reward_mean_k, 0)`; a client that measures in larger units counts more. A baseline to beat."""

    n_k: Counted = "rows"

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]:
        rewards = normalised([max(report.reward_mean, 0.0) for report in reports])
        return normalised([size * reward for size, reward in zip(sizes(reports, self.n_k), rewards, strict=True)])
