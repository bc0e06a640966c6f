"""Weights by raw reward: the obvious rule, and the one that reward scales mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import normalised


@dataclass(frozen=True)
class Reward:
    """`w_k ~ n_k * max(reward_mean_k, 0)`; a client that measures in larger units counts more. A baseline to beat."""

    def __call__(self, reports: Sequence[Report], history: Mapping[str, ClientHistory]) -> list[float]:
        return normalised([report.sequences * max(report.reward_mean, 0.0) for report in reports])
