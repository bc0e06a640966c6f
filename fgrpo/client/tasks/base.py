"""What a task is: numbered prompts, a held-out set, and rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

from fgrpo.client.stock import Stock
from fgrpo.client.tasks.scoring import WeightedReward
from fgrpo.errors import TaskError
from fgrpo.records import Chat, Example


@dataclass(frozen=True)
class Row:
    """A row of a task's data.

    Attributes:
        label: its value in the column that the data were split by; None without one.
    """

    prompt: str | Chat
    label: str | None = None


class Task(Protocol):
    """Prompts with a verifiable reward. A new kind of task is a new file beside this one."""

    name: str
    rewards: Sequence[WeightedReward]  # the first one judges whether an answer is right, with full marks of 1.0
    rows: Sequence[Row] | None  # all there is; None for a task that makes its examples up without end
    files: Mapping[str, str]  # a digest per dataset that the task reads
    test: Sequence[Example] | None  # a test set of its own; None where held-out prompts are the task's first ones

    def example(self, index: int) -> Example:
        """Return example `index`, the same one every time; any index >= 0 is valid."""
        ...


class Curriculum:
    """A task cut into a held-out set and an endless stream of training examples that avoids it.

    The held-out set is the task's own test set, whole, or else its first `held_out` different prompts; empty where
    `held_out` is 0. Training skips every prompt whose text is among them, so the two never meet, however small the
    task's space of questions.
    """

    _ATTEMPTS = 1000
    _STRIDE = 1_003_637  # scatters the retries of neighbouring indices, also modulo a round number of examples

    def __init__(self, task: Task, held_out: int) -> None:
        self.task = task
        own_test = task.test if held_out else None
        self.held_out: Sequence[Example] = self._first_different(held_out) if own_test is None else own_test
        self._own = {example.prompt for example in self.held_out}
        self._excluded: Set[str | Chat] = frozenset()

    def _first_different(self, wanted: int) -> list[Example]:
        found: dict[str | Chat, Example] = {}
        for index in islice(count(), wanted * 20):
            if len(found) == wanted:
                break
            example = self.task.example(index)
            found.setdefault(example.prompt, example)
        return list(found.values())

    def exclude(self, prompts: Set[str | Chat]) -> None:
        """Keep more prompts out of training, those that others hold out; the set is shared, not copied."""
        self._excluded = prompts

    def training_rows(self) -> list[Row] | None:
        """Return the rows that training can draw; None if they never end."""
        rows = self.task.rows
        return None if rows is None else [row for row in rows if not self._is_held_out(row.prompt)]

    def _is_held_out(self, prompt: str | Chat) -> bool:
        return prompt in self._own or prompt in self._excluded

    def can_train(self) -> bool:
        """Whether there is anything to train on."""
        rows = self.training_rows()
        if rows is not None:
            return bool(rows)
        try:
            self.training_example(0)
        except TaskError:
            return False
        except Exception:
            pass
        return True

    def stock(self) -> Stock:
        """Return what there is to train on."""
        rows = self.training_rows()
        return Stock(
            task=self.task.name,
            rows=None if rows is None else len(rows),
            can_train=self.can_train(),
            labels=Counter(row.label for row in rows or () if row.label is not None),
            files=self.task.files,
        )

    def training_example(self, index: int) -> Example:
        """Return training example `index`, or another in its place if that one is held out."""
        for attempt in range(self._ATTEMPTS):
            example = self.task.example(index + attempt * self._STRIDE)
            if not self._is_held_out(example.prompt):
                return example
        raise TaskError(
            f"task {self.task.name}: every prompt is held out for evaluation ({len(self.held_out)} of its own); "
            "lower evaluation.prompts or widen the task"
        )
