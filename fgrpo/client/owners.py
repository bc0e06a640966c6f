"""The data owners: which prompts each draws, and in which scale it measures reward."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from fgrpo.client.partition import split
from fgrpo.client.tasks import Curriculum, make_task
from fgrpo.client.tasks.dataset import DatasetTask
from fgrpo.client.tasks.rewards import reward_by_name
from fgrpo.client.tasks.tables import load_table
from fgrpo.config import ClientConfig, Config, PartitionConfig
from fgrpo.errors import ConfigError
from fgrpo.records import Example
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

    def draw(self, start: int, number: int) -> list[Question]:
        """Return training questions `start` to `start + number` of this client's endless stream."""
        return [self._question(index) for index in range(start, start + number)]

    def _question(self, index: int) -> Question:
        choice = random.Random(derive_seed(self.seed, index))
        (curriculum,) = choice.choices(self.curricula, self.task_weights)
        return Question(curriculum, curriculum.training_example(index))

    def held_out(self) -> list[Question]:
        """Return the held-out questions of all its tasks; training never sees them."""
        return [Question(c, example) for c in self.curricula for example in c.held_out]

    def reward(self, question: Question, completion: str) -> float:
        """Return the reward of a completion in this client's own scale."""
        return self.reward_scale * question.curriculum.score(question.example, completion)


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
    return Client(name, tuple(curricula), tuple(task.weight for task in client.tasks), client.reward_scale, seed)


def _partitioned(partition: PartitionConfig, config: Config) -> list[Client]:
    """Split one dataset into clients; held-out prompts come from each client's own share."""
    task = partition.task
    if task.dataset is None:
        raise ConfigError("partition.task: only a dataset can be partitioned; set partition.task.dataset")
    table, reward = load_table(task), reward_by_name(task.reward or "exact_match")
    clients = []
    for name, positions in split(partition, table, config.seed).items():
        seed = derive_seed(config.seed, name)
        part = DatasetTask(f"{task.dataset}[{name}]", table, seed, reward, positions)
        clients.append(Client(name, (Curriculum(part, config.evaluation.prompts),), (1.0,), 1.0, seed))
    return clients
