"""Averages over rounds and over clients that weightings, step sizes and the history share."""

from __future__ import annotations

import math
from collections.abc import Mapping


def moved(average: float | None, value: float | None, decay: float) -> float | None:
    """Return an exponential moving average one value further on; it starts at the first value there is."""
    if value is None or average is None:
        return average if value is None else value
    return decay * average + (1 - decay) * value


def mean_agreement(weights: Mapping[str, float], agreement: Mapping[str, float]) -> float | None:
    """Return the weighted mean over the clients with a past; None if none of any weight has one."""
    known = math.fsum(weights[client] for client in agreement)
    return math.fsum(weights[client] * value for client, value in agreement.items()) / known if known > 0 else None
