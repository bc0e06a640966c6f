"""The data owners: which prompts each draws, and in which scale it measures reward."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fgrpo.client.partition import split
from fgrpo.client.tasks import Curriculum, dataset_rewards, make_task
from fgrpo.client.tasks.dataset import DatasetTask
from fgrpo.client.tasks.scoring import OnError, Scores, score
from fgrpo.client.tasks.tables import load_table
from fgrpo.config import ClientConfig, Config, PartitionConfig
from fgrpo.errors import ConfigError
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
        """Return training questions `start` to `start + number` of this client's endless stream."""
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
        labels = Counter(row.label for c in self.curricula for row in c.training_rows() or () if row.label is not None)
        empty = [c for c, weight in zip(self.curricula, self.task_weights, strict=True) if not weight]
        part = "this task" if self.can_train else "the client"
        return ClientData(
            client=self.name,
            rows=self.rows if self.can_train else 0,
            held_out=len(self.held_out()),
            labels=dict(sorted(labels.items())),
            files={name: digest for c in self.curricula for name, digest in c.task.files.items()},
            notes=[
                f"client {self.name}: task {c.task.name} has nothing to train on: all its prompts are held out for "
                f"evaluation ({len(c.held_out)} by itself); {part} takes no part; lower evaluation.prompts"
                for c in empty
            ],
        )

    def held_out(self) -> list[Question]:
        """Return the held-out questions of all its tasks; training never sees them."""
        return [Question(c, example) for c in self.curricula for example in c.held_out]

    def scores(self, questions: Sequence[Question], completions: Sequence[Completion]) -> Scores:
        """Score completions, `questions[i]` being what completion `i` answers; before the client's reward scale."""
        values, correct = [math.nan] * len(questions), [False] * len(questions)
        parts: dict[str, list[float]] = {}
        failures, failure = 0, ""
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
            failures, failure = failures + part.failures, failure or part.failure
        return Scores(values, correct, parts, failures, failure)


def make_clients(config: Config) -> list[Client]:
    """Build the clients that a configuration describes, in its order."""
    if bool(config.clients) == (config.partition is not None):
        raise ConfigError("the configuration needs either clients: or partition:, exactly one of them")
    if config.partition is not None:
        clients = _partitioned(config.partition, config)
    else:
        clients = [_from_tasks(name, client, config) for name, client in config.clients.items()]
    held_out = {question.example.prompt for client in clients for question in client.held_out()}
    for client in clients:
        for curriculum in client.curricula:
            curriculum.exclude(held_out)
    clients = [client.with_what_it_has() for client in clients]
    if not any(client.can_train for client in clients):
        raise ConfigError(f"no client has anything to train on: {clients[0].data().notes[0]}")
    return clients


def _from_tasks(name: str, client: ClientConfig, config: Config) -> Client:
    if not client.tasks:
        raise ConfigError(f"client {name}: it has no tasks")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"clients: the name {name!r} also names a file; use letters, digits, '_', '.' and '-'")
    seed = derive_seed(config.seed, name)
    share = -(-config.evaluation.prompts // len(client.tasks))
    try:
        curricula = [Curriculum(make_task(task, derive_seed(seed, i)), share) for i, task in enumerate(client.tasks)]
    except ConfigError as error:
        raise ConfigError(f"client {name}: {error}") from None
    weights = tuple(task.weight for task in client.tasks)
    return Client(name, tuple(curricula), weights, client.reward_scale, seed, config.rewards.on_error)


def _partitioned(partition: PartitionConfig, config: Config) -> list[Client]:
    """Split one dataset into clients; held-out prompts come from each client's own share."""
    task = partition.task
    if task.dataset is None:
        raise ConfigError("partition.task: only a dataset can be partitioned; set partition.task.dataset")
    table = load_table(task)
    rewards = dataset_rewards(task, table)
    labels = None if partition.column is None else table.labels(partition.column)
    clients = []
    for name, positions in split(partition, len(table.rows), labels, config.seed).items():
        seed = derive_seed(config.seed, name)
        part = DatasetTask(f"{task.dataset}[{name}]", table, seed, rewards, positions, labels)
        clients.append(
            Client(name, (Curriculum(part, config.evaluation.prompts),), (1.0,), 1.0, seed, config.rewards.on_error)
        )
    return clients
