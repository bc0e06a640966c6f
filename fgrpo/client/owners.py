"""The data owners: which prompts each draws, and in which scale it measures reward."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from fgrpo.client.tasks import Curriculum, make_task
from fgrpo.client.tasks.dataset import DatasetTask, check_columns, load_rows
from fgrpo.client.tasks.rewards import reward_by_name
from fgrpo.config import ClientConfig, Config, PartitionConfig
from fgrpo.errors import ConfigError, FgrpoError
from fgrpo.participation import evaluated, round_size
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


class Owners(Mapping[str, Client]):
    """The clients of a configuration, by name in its order; each is built when it is asked for.

    Only the last few stay built: a client that takes no part costs no more than its name. What is wrong with the
    configuration is found at once all the same, and every different task is tried.

    Attributes:
        evaluated: the clients that hold prompts out. No client trains on a prompt that any of them holds out.
    """

    def __init__(self, config: Config) -> None:
        if bool(config.clients) == (config.partition is not None):
            raise ConfigError("the configuration needs either clients: or partition:, exactly one of them")
        if config.partition is not None:
            self._names, self._make = _partitioned(config.partition, config)
        else:
            self._names, self._make = _from_tasks(config)
        round_size(len(self._names), config.participation)  # now that there is no doubt of how many there are
        self.evaluated = evaluated(self._names, config)
        self._evaluated = frozenset(self.evaluated)
        self._built = lru_cache(maxsize=_STAY_BUILT)(self._build)
        self._held_out: set[str] = set()
        for name in self.evaluated:
            self._held_out |= self._prompts_held_out(name)

    def _prompts_held_out(self, name: str) -> set[str]:
        try:
            return {question.example.prompt for question in self[name].held_out()}
        except FgrpoError:
            raise
        except Exception as error:  # whatever a task's own code may raise
            raise ConfigError(f"client {name}: its held-out prompts cannot be drawn: {error!r}") from error

    def _build(self, name: str) -> Client:
        client = self._make(name, name in self._evaluated)
        for curriculum in client.curricula:
            curriculum.exclude(self._held_out)
        return client

    def __getitem__(self, name: str) -> Client:
        return self._built(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def make_clients(config: Config) -> list[Client]:
    """Build all clients that a configuration describes, in its order."""
    return list(Owners(config).values())


_STAY_BUILT = 32  # clients; a task may hold megabytes
_Make = Callable[[str, bool], Client]  # from a name, and whether the client holds prompts out


def _from_tasks(config: Config) -> tuple[list[str], _Make]:
    """Return the names of the clients under `clients:`, and what builds one."""
    seen = set()
    for name, client in config.clients.items():
        if not client.tasks:
            raise ConfigError(f"client {name}: it has no tasks")
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"clients: the name {name!r} also names a file; use letters, digits, '_', '.' and '-'")
        different = repr([replace(task, weight=1.0) for task in client.tasks])
        if different not in seen:
            seen.add(different)
            _curricula(name, client, config, held_out=0)
    return list(config.clients), lambda name, holds_out: _client(name, config, holds_out)


def _client(name: str, config: Config, holds_out: bool) -> Client:
    client = config.clients[name]
    share = -(-config.evaluation.prompts // len(client.tasks)) if holds_out else 0
    weights = tuple(task.weight for task in client.tasks)
    curricula = _curricula(name, client, config, share)
    return Client(name, curricula, weights, client.reward_scale, derive_seed(config.seed, name))


def _curricula(name: str, client: ClientConfig, config: Config, held_out: int) -> tuple[Curriculum, ...]:
    seed = derive_seed(config.seed, name)
    try:
        return tuple(Curriculum(make_task(t, derive_seed(seed, i)), held_out) for i, t in enumerate(client.tasks))
    except ConfigError as error:
        raise ConfigError(f"client {name}: {error}") from None


def _partitioned(partition: PartitionConfig, config: Config) -> tuple[list[str], _Make]:
    """Split one dataset into clients; held-out prompts come from each client's own share."""
    task = partition.task
    if task.dataset is None:
        raise ConfigError("partition.task: only a dataset can be partitioned; set partition.task.dataset")
    splitter, rows = _splitter(partition, config.seed), load_rows(task)
    if partition.column is not None:
        check_columns(rows, task.dataset, partition.column)
    splitter.dataset = rows
    try:
        count = splitter.num_partitions
        for number in range(count):
            if len(splitter.load_partition(number)) == 0:
                raise ValueError(f"client-{number} would have none")
    except (ValueError, IndexError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"partition: {len(rows)} rows cannot be split ({partition.scheme}, {partition.clients} clients): {reason}"
        ) from None
    reward = reward_by_name(task.reward or "exact_match")

    def make(name: str, holds_out: bool) -> Client:
        number, seed = numbers[name], derive_seed(config.seed, name)
        part = DatasetTask(f"{task.dataset}[{number}]", splitter.load_partition(number), task, seed, reward)
        curriculum = Curriculum(part, config.evaluation.prompts if holds_out else 0)
        return Client(name, (curriculum,), (1.0,), 1.0, seed)

    numbers = {f"client-{number}": number for number in range(count)}
    return list(numbers), make


def _splitter(partition: PartitionConfig, seed: int):  # type: ignore[no-untyped-def]
    try:
        from flwr_datasets import partitioner as by
    except ImportError:
        raise ConfigError("partition: needs flwr-datasets: pip install 'fgrpo[tasks]'") from None
    if partition.scheme == "iid":
        return by.IidPartitioner(partition.clients)
    if partition.column is None:
        raise ConfigError(f"partition.scheme {partition.scheme} needs partition.column")
    if partition.scheme == "column":
        return by.NaturalIdPartitioner(partition.column)
    return by.DirichletPartitioner(
        partition.clients,
        partition.column,
        alpha=partition.alpha,
        min_partition_size=8,
        self_balancing=False,
        seed=seed,
    )
