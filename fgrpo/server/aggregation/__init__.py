"""Weightings, by the names that `aggregation.rule` takes. A new one is a file beside these and a line in the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fgrpo.config import AggregationConfig
from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.agreement import Agreement
from fgrpo.server.aggregation.base import Weighting
from fgrpo.server.aggregation.conflict import MGDA, UPGrad
from fgrpo.server.aggregation.fedavg import FedAvg
from fgrpo.server.aggregation.fgrpo import FGRPO
from fgrpo.server.aggregation.gain import Measure, Trials, make_measure
from fgrpo.server.aggregation.informative import Informative
from fgrpo.server.aggregation.lagging import Lagging
from fgrpo.server.aggregation.reward import Reward
from fgrpo.server.aggregation.uniform import Uniform

__all__ = [
    "FGRPO",
    "MGDA",
    "WEIGHTINGS",
    "Agreement",
    "FedAvg",
    "Informative",
    "Lagging",
    "Reward",
    "UPGrad",
    "Uniform",
    "Weighting",
    "gains",
    "make_rule",
]


class Entry(NamedTuple):
    """A weighting as `fgrpo rules` lists it.

    Attributes:
        make: from its configuration, and what gains are measured on.
        about: one line.
        source: where it comes from.
        reads: keys under `aggregation` that its weights depend on, of those that some weightings do not read.
        reads_tried: and these where `gain` is `server`.
        compares_deltas: it looks at each client's last delta, which is kept for it.
    """

    make: Callable[[AggregationConfig, Measure], Weighting]
    about: str
    source: str
    reads: tuple[str, ...] = ()
    reads_tried: tuple[str, ...] = ()
    compares_deltas: bool = False


def _fgrpo(config: AggregationConfig, measure: Measure) -> FGRPO:
    return FGRPO(config.tau, config.clip, config.cap, config.floor, config.scale, config.smoothing, config.n_k, measure)


def _agreement(config: AggregationConfig, measure: Measure) -> Agreement:
    tried = _fgrpo(config, measure) if config.gain == "server" else None
    return Agreement(config.cap, config.floor, config.decay, tried)


_LIMITS = ("cap", "floor")
_GAINS = ("tau", "clip", "scale", "smoothing", "gain")

WEIGHTINGS = {
    "fgrpo": Entry(
        _fgrpo,
        "n_k * exp(gain / tau): relative gain over the client's own past",
        "arXiv 2606.03094",
        ("n_k", *_GAINS, *_LIMITS),
    ),
    "fedavg": Entry(
        lambda config, _: FedAvg(config.n_k), "n_k: who has more data counts more", "arXiv 1602.05629", ("n_k",)
    ),
    "uniform": Entry(lambda config, _: Uniform(), "1/K", "-"),
    "reward": Entry(
        lambda config, _: Reward(config.n_k), "n_k * max(reward, 0): larger units count more", "a baseline", ("n_k",)
    ),
    "informative": Entry(
        lambda config, _: Informative(config.cap, config.floor),
        "completions in groups whose rewards differed",
        "arXiv 2602.05547",
        _LIMITS,
    ),
    "agreement": Entry(
        _agreement,
        "informative completions * agreement of the delta with its last one; gain server: * exp(min(gain, 0) / tau)",
        "docs/aggregation.md",
        _LIMITS,
        _GAINS,
        compares_deltas=True,
    ),
    "lagging": Entry(
        lambda config, measure: Lagging(_fgrpo(config, measure), config.cap, config.floor),
        "informative completions * exp(-gain / tau): those that lag behind first",
        "arXiv 2602.05547",
        (*_GAINS, *_LIMITS),
    ),
    "upgrad": Entry(lambda config, _: UPGrad(), "each delta projected so that it opposes no other", "arXiv 2406.16232"),
    "mgda": Entry(lambda config, _: MGDA(), "the shortest mean: it opposes no delta", "arXiv 1810.04650"),
}


def make_rule(config: AggregationConfig, trials: Trials | None = None) -> Weighting:
    """Return the weighting that a configuration names, for a round with these trials."""
    return WEIGHTINGS[config.rule].make(config, make_measure(config, trials))


def gains(
    config: AggregationConfig,
    reports: Sequence[Report],
    history: Mapping[str, ClientHistory],
    trials: Trials | None = None,
) -> list[float]:
    """Return each report's relative performance gain, whatever the rule; the metrics show it."""
    rule = _fgrpo(config, make_measure(config, trials))
    return [rule.gain(report, history.get(report.client)) for report in reports]
