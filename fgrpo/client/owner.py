"""A data owner: which prompts it draws, and how it scores what a model answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fgrpo.client.stock import client_data
from fgrpo.client.tasks import Curriculum
from fgrpo.client.tasks.scoring import OnError, Scores, score
from fgrpo.errors import TaskError
from fgrpo.records import ClientData, Completion, Example
from fgrpo.seeds import derive_seed


@dataclass(frozen=True)
class Question:
    """An example together with the curriculum that scores it."""

    curriculum: Curriculum
    example: Example


@dataclass(frozen=True)
class Client:
    """A data owner. Its prompts never leave it; only reports and payloads do."""

    name: str
    curricula: tuple[Curriculum, ...]
    task_weights: tuple[float, ...]
    reward_scale: float
    seed: int
    on_error: OnError = "skip"

    def draw(self, start: int, number: int) -> list[Question]:
        """Return training questions `start` to `start + number` of this client's endless stream.

        Raises:
            TaskError: it has nothing to train on.
        """
        if not self.can_train:
            raise TaskError(self.data().notes[0])
        return [self._question(index) for index in range(start, start + number)]

    def _question(self, index: int) -> Question:
        choice = random.Random(derive_seed(self.seed, index))
        (curriculum,) = choice.choices(self.curricula, self.task_weights)
        return Question(curriculum, curriculum.training_example(index))

    @property
    def can_train(self) -> bool:
        return any(self.task_weights)

    @property
    def rows(self) -> int | None:
        """Its training rows; None if one of its tasks never ends."""
        rows = [curriculum.training_rows() for curriculum in self.curricula]
        return None if any(of_task is None for of_task in rows) else sum(len(of_task or ()) for of_task in rows)

    def with_what_it_has(self) -> Client:
        """Return the client drawing only from tasks that have something to train on."""
        weights = [w if c.can_train() else 0.0 for c, w in zip(self.curricula, self.task_weights, strict=True)]
        return replace(self, task_weights=tuple(weights))

    def data(self) -> ClientData:
        """Return what it has to learn from: counts, never the data."""
        stocks = [curriculum.stock() for curriculum in self.curricula]
        return client_data(self.name, stocks, [len(curriculum.held_out) for curriculum in self.curricula])

    def held_out(self) -> list[Question]:
        """Return the held-out questions of all its tasks; training never sees them."""
        return [Question(c, example) for c in self.curricula for example in c.held_out]

    def scores(self, questions: Sequence[Question], completions: Sequence[Completion]) -> Scores:
        """Score completions, `questions[i]` being what completion `i` answers; before the client's reward scale."""
        values, correct = [math.nan] * len(questions), [False] * len(questions)
        parts: dict[str, list[float]] = {}
        failures, failure = 0, ""
        cause: BaseException | None = None
        for curriculum in self.curricula:
            rows = [i for i, question in enumerate(questions) if question.curriculum is curriculum]
            if not rows:
                continue
            examples = [questions[i].example for i in rows]
            part = score(curriculum.task.rewards, examples, [completions[i] for i in rows], self.on_error)
            for i, value, is_correct in zip(rows, part.values, part.correct, strict=True):
                values[i], correct[i] = value, is_correct
            for name, column in part.parts.items():
                parts.setdefault(name, []).extend(column)
            if not failure:
                failure, cause = part.failure, part.cause
            failures += part.failures
        return Scores(values, correct, parts, failures, failure, cause)
