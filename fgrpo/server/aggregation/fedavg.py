"""Federated averaging (McMahan et al., 2017, arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import Counted, normalised, sizes
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class FedAvg:
    """`w_k ~ n_k`, the client's training rows, or what else `n_k` counts by."""

    n_k: Counted = "rows"

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]:
        return normalised(sizes(reports, self.n_k))
