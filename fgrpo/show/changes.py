"""Whether a measure changed by more than chance gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from fgrpo.records import Evaluation

_FEWEST = 4  # values that a trend can be read from
_SURE = 2.0  # errors that a change of the whole run must exceed
_SURE_OF_ONE = 2.5  # and that of one client, as there are many to be wrong about


@dataclass(frozen=True)
class Change:
    """A measure before and after.

    Attributes:
        error: standard error of the difference.
        sure: how many errors make a change clear.
    """

    before: float
    after: float
    error: float
    sure: float = _SURE_OF_ONE

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def up(self) -> bool:
        return self.difference > self.sure * self.error

    @property
    def down(self) -> bool:
        return -self.difference > self.sure * self.error

    @property
    def not_up(self) -> bool:
        """Whether there is no sign of a rise: not even one that chance may have made."""
        return self.difference <= self.error

    @property
    def factor(self) -> float:
        """After as a multiple of before; 1 where there is nothing to divide by."""
        return self.after / self.before if self.before > 0 else 1.0


def trend(values: Sequence[float]) -> Change | None:
    """Return the first third's mean against the last third's; None for fewer than 4 values, or if one is not finite.

    The error comes from the differences of neighbours, which a steady rise hardly adds to.
    """
    if len(values) < _FEWEST or not all(map(math.isfinite, values)):
        return None
    third = len(values) // 3
    steps = [b - a for a, b in pairwise(values)]
    noise = math.sqrt(fmean(step * step for step in steps) / 2)
    return Change(fmean(values[:third]), fmean(values[-third:]), noise * math.sqrt(2 / third))


def accuracy_change(before: Evaluation, after: Evaluation) -> Change:
    """Return a change of accuracy; its error is as if the prompts differed, so rather too large."""
    return Change(before.accuracy, after.accuracy, math.sqrt(_variance(before) + _variance(after)))


def mean_change(changes: Sequence[Change]) -> Change | None:
    """Return the mean over clients, a change of the whole run; None if there are none."""
    if not changes:
        return None
    error = math.sqrt(sum(change.error**2 for change in changes)) / len(changes)
    return Change(fmean(c.before for c in changes), fmean(c.after for c in changes), error, _SURE)


def _variance(evaluation: Evaluation) -> float:
    """Return the variance of an accuracy, as if one more prompt were right and one wrong: 0 of 64 is not certain."""
    share = (evaluation.accuracy * evaluation.prompts + 1) / (evaluation.prompts + 2)
    return share * (1 - share) / (evaluation.prompts + 2)
