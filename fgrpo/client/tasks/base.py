"""What a task is: numbered prompts, a held-out set, and a verifier."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from itertools import count, islice
from typing import Protocol

from fgrpo.errors import FgrpoError, TaskError
from fgrpo.records import Example


class Task(Protocol):
    """Prompts with a verifiable reward. A new kind of task is a new file beside this one."""

    name: str

    def example(self, index: int) -> Example:
        """Return example `index`, the same one every time; any index >= 0 is valid."""
        ...

    def score(self, example: Example, completion: str) -> float:
        """Return the verifier's score of a completion, full marks being 1.0."""
        ...


class Curriculum:
    """A task cut into a held-out set and an endless stream of training examples that avoids it.

    The held-out set is the task's first `held_out` different prompts. Training skips every prompt whose text is among
    them, so the two never meet, however small the task's space of questions.
    """

    _ATTEMPTS = 1000
    _STRIDE = 1_003_637  # scatters the retries of neighbouring indices, also modulo a round number of examples

    def __init__(self, task: Task, held_out: int) -> None:
        self.task = task
        self.held_out: Sequence[Example] = self._first_different(held_out)
        self._own = {example.prompt for example in self.held_out}
        self._excluded: Set[str] = frozenset()

    def _first_different(self, wanted: int) -> list[Example]:
        found: dict[str, Example] = {}
        for index in islice(count(), wanted * 20):
            if len(found) == wanted:
                break
            example = self.task.example(index)
            found.setdefault(example.prompt, example)
        return list(found.values())

    def exclude(self, prompts: Set[str]) -> None:
        """Keep more prompts out of training, those that others hold out; the set is shared, not copied."""
        self._excluded = prompts

    def training_example(self, index: int) -> Example:
        """Return training example `index`, or another in its place if that one is held out."""
        for attempt in range(self._ATTEMPTS):
            example = self.task.example(index + attempt * self._STRIDE)
            if example.prompt not in self._own and example.prompt not in self._excluded:
                return example
        raise TaskError(
            f"task {self.task.name}: every prompt is held out for evaluation ({len(self.held_out)} of its own); "
            "lower evaluation.prompts or widen the task"
        )

    def score(self, example: Example, completion: str) -> float:
        """Return the task's score, checked to be a finite number."""
        try:
            score = float(self.task.score(example, completion))
        except FgrpoError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's own function may raise, exit() too
            raise TaskError(
                f"task {self.task.name}: the reward function failed on {completion[:60]!r}: {error!r}"
            ) from error
        if not math.isfinite(score):
            raise TaskError(
                f"task {self.task.name}: the reward function returned {score!r}, expected a finite number "
                f"(completion {completion[:60]!r})"
            )
        return score
