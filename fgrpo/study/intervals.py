"""How sure a mean over seeds is: 95% intervals by Student's t and by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

_CONFIDENCE = 0.95
_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% intervals; None where there are too few seeds for any."""

    value: float
    t: Interval | None
    bootstrap: Interval | None


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one number per seed."""
    array_S = np.asarray(values, dtype=float)
    interval = bootstrap(len(values), lambda index_RS: array_S[index_RS].mean(axis=1))
    return Estimate(fmean(values), t_interval(values), interval)


def t_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's interval of a mean; None for fewer than two values, or any that is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    half = t_quantile(0.5 + _CONFIDENCE / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values) - half, fmean(values) + half)


def bootstrap(seeds: int, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval | None:
    """Return the percentile interval of a statistic over resampled seeds; None for fewer than three seeds.

    Args:
        statistic: takes int64 [R, S], R resamples of the S seeds' positions, and returns float [R].
    """
    if seeds < 3:
        return None
    index_RS = np.random.default_rng(0).integers(seeds, size=(_RESAMPLES, seeds))
    tail = 50 * (1 - _CONFIDENCE)
    # Values between two neighbours would be means, and a mean with "never" is none.
    low, high = np.percentile(statistic(index_RS), [tail, 100 - tail], method="closest_observation")
    return Interval(float(low), float(high))


def t_quantile(p: float, freedom: int) -> float:
    """Return the value below which Student's t, with so many degrees of freedom, lies with probability p >= 0.5."""
    low, high = 0.0, 1.0
    while _t_probability(high, freedom) < p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _t_probability(t: float, freedom: int) -> float:
    """Return P(T <= t) for t >= 0: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd and freedom > 1 else (0.0, 0.0) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2
