"""How sure a median or a quotient is: 95% intervals by the bootstrap, over the rounds that were timed."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

RESAMPLED = 2000

Interval = tuple[float, float]


def of_median(values: Sequence[float]) -> Interval:
    """Where the median lies. Of three values it is no narrower than their range."""
    return _bootstrap(lambda draw: _median_again(draw, values))


def of_quotient(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Where the quotient of the medians of two independent samples lies."""
    return _bootstrap(lambda draw: _median_again(draw, numerators) / _median_again(draw, denominators))


def _bootstrap(statistic: Callable[[random.Random], float]) -> Interval:
    draw = random.Random(0)
    found = sorted(statistic(draw) for _ in range(RESAMPLED))
    return found[round(0.025 * RESAMPLED)], found[round(0.975 * RESAMPLED) - 1]


def _median_again(draw: random.Random, values: Sequence[float]) -> float:
    return statistics.median(draw.choices(values, k=len(values)))
