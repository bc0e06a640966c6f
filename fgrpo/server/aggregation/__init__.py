"""Aggregation rules. A new one is a new file beside these and a line in `make_rule`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fgrpo.config import AggregationConfig
from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import Rule, updated_history
from fgrpo.server.aggregation.fedavg import FedAvg
from fgrpo.server.aggregation.fgrpo import FGRPO
from fgrpo.server.aggregation.reward import Reward
from fgrpo.server.aggregation.uniform import Uniform

__all__ = ["FGRPO", "FedAvg", "Reward", "Rule", "Uniform", "gains", "make_rule", "updated_history"]


def make_rule(config: AggregationConfig) -> Rule:
    """Return the rule that a configuration names."""
    rules: dict[str, Rule] = {
        "fgrpo": FGRPO(config.tau, config.clip, config.cap, config.scale, config.n_k),
        "fedavg": FedAvg(config.n_k),
        "uniform": Uniform(),
        "reward": Reward(config.n_k),
    }
    return rules[config.rule]


def gains(config: AggregationConfig, reports: Sequence[Report], history: Mapping[str, ClientHistory]) -> list[float]:
    """Return each report's relative performance gain, whatever the rule; the metrics show it."""
    rule = FGRPO(config.tau, config.clip, config.cap, config.scale)
    return [rule.gain(report, history.get(report.client)) for report in reports]
