"""From what reward functions return to one score per completion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fgrpo.errors import TaskError
from fgrpo.records import Completion, Example

OnError = Literal["skip", "zero", "raise"]


@dataclass(frozen=True)
class RewardFailure:
    """A function gave one completion no usable reward.

    Attributes:
        reason: one line, with the function's file and line.
        error: what it raised, if it did.
    """

    reason: str
    error: BaseException | None = None


Outcome = float | None | RewardFailure  # None: the function does not apply to this completion


class RewardFunction(Protocol):
    """One reward function, whatever form its author gave it."""

    @property
    def name(self) -> str: ...

    def __call__(self, examples: Sequence[Example], completions: Sequence[Completion]) -> list[Outcome]:
        """Return an outcome for each completion; `examples[i]` is what completion `i` answers."""
        ...


@dataclass(frozen=True)
class WeightedReward:
    """A reward function and its weight in the sum."""

    function: RewardFunction
    weight: float = 1.0


@dataclass(frozen=True)
class Scores:
    """Scores of completions, each list in their order.

    Attributes:
        values: weighted sum of the functions that apply; NaN for a completion that has no score.
        correct: whether the first function gave full marks, 1.0; the others shape, the first one judges.
        parts: per function its own values, NaN where it does not apply or failed.
        failures: how often a function failed.
        failure: the first failure's reason, or an empty text.
        cause: the exception behind the first failure, if one was raised.
    """

    values: list[float]
    correct: list[bool]
    parts: dict[str, list[float]]
    failures: int
    failure: str
    cause: BaseException | None = field(default=None, compare=False)


_FULL_MARKS = 1.0 - 1e-6


def score(
    rewards: Sequence[WeightedReward],
    examples: Sequence[Example],
    completions: Sequence[Completion],
    on_error: OnError,
) -> Scores:
    """Score completions.

    Args:
        on_error: what a failing function means for its completion: no score (`skip`), 0 from that function (`zero`), or
            a TaskError (`raise`).
    """
    columns = [reward.function(examples, completions) for reward in rewards]
    failed = [outcome for column in columns for outcome in column if isinstance(outcome, RewardFailure)]
    if failed and on_error == "raise":
        raise TaskError(failed[0].reason) from failed[0].error
    weights = [reward.weight for reward in rewards]
    first, *_ = numbers = [[_number(outcome) for outcome in column] for column in columns]
    return Scores(
        values=[_total(row, weights, on_error) for row in zip(*columns, strict=True)],
        correct=[value >= _FULL_MARKS for value in first],
        parts={reward.function.name: column for reward, column in zip(rewards, numbers, strict=True)},
        failures=len(failed),
        failure=failed[0].reason if failed else "",
        cause=failed[0].error if failed else None,
    )


def _total(row: Sequence[Outcome], weights: Sequence[float], on_error: OnError) -> float:
    if on_error == "skip" and any(isinstance(outcome, RewardFailure) for outcome in row):
        return math.nan
    known = [
        weight * (0.0 if isinstance(outcome, RewardFailure) else outcome)
        for outcome, weight in zip(row, weights, strict=True)
        if outcome is not None
    ]
    return sum(known) if known else math.nan


def _number(outcome: Outcome) -> float:
    return outcome if isinstance(outcome, float) else math.nan
