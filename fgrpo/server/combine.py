"""From the accepted deltas to one: the weighted mean, or a mean that a hostile client cannot carry away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fgrpo.config import AggregationConfig
from fgrpo.errors import RunError
from fgrpo_kernels.codec import Encoded, aggregate
from fgrpo_kernels.robust import MOST_SORTED, clipped_mean, median, trimmed_mean

MERGES = {
    "none": "the weighted mean",
    "clipped_mean": "the weighted mean of deltas clipped to `max_norm`",
    "trimmed_mean": "per parameter, the mean without the `trim` largest and smallest; no weights",
    "median": "per parameter; no weights",
}


@dataclass(frozen=True)
class Combined:
    """The aggregated delta and how each client counted in it.

    Attributes:
        delta_P: float32.
        weights: the weights that applied: the rule's, or equal ones where the combination has no weights.
        norms: each delta's L2 norm before clipping; empty where nothing is clipped.
    """

    delta_P: Tensor
    weights: Mapping[str, float]
    norms: Mapping[str, float] = field(default_factory=dict)


def combine(deltas: Mapping[str, Encoded], weights: Mapping[str, float], config: AggregationConfig) -> Combined:
    """Combine the clients' deltas as `aggregation.robust` says.

    Args:
        deltas: by client name.
        weights: the aggregation rule's, for the same clients in the same order.

    Raises:
        RunError: `trimmed_mean` would leave nothing of so few replies, or there are too many to sort.
    """
    encodeds = list(deltas.values())
    if config.robust == "none":
        return Combined(aggregate(encodeds, list(weights.values())), weights)
    if config.robust == "clipped_mean":
        assert config.max_norm is not None  # the settings' check
        clipped = clipped_mean(encodeds, list(weights.values()), config.max_norm)
        return Combined(clipped.mean, weights, dict(zip(deltas, clipped.norms, strict=True)))
    if len(deltas) > MOST_SORTED:
        raise RunError(
            f"aggregation.robust: {config.robust} sorts at most {MOST_SORTED} clients, got {len(deltas)} replies"
        )
    equal = dict.fromkeys(deltas, 1 / len(deltas))
    if config.robust == "median":
        return Combined(median(encodeds), equal)
    assert config.trim is not None
    if len(deltas) <= 2 * config.trim:
        raise RunError(
            f"aggregation.trim: {config.trim} at each end leave nothing of {len(deltas)} usable replies; "
            "lower it, or ask more clients"
        )
    return Combined(trimmed_mean(encodeds, config.trim), equal)
