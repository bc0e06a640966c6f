"""Where a configuration's clients come from: their names at once, each client when it is asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

from fgrpo.client.owner import Client
from fgrpo.client.partition import split
from fgrpo.client.stock import Stock
from fgrpo.client.tasks import Curriculum, dataset_rewards, make_task
from fgrpo.client.tasks.dataset import DatasetTask
from fgrpo.client.tasks.tables import Table, load_table
from fgrpo.config import ClientConfig, Config, PartitionConfig, TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.records import Chat
from fgrpo.seeds import derive_seed

_TABLES_KEPT = 8  # datasets; each may hold gigabytes
_READ = ("dataset", "subset", "split", "prompt_column", "answer_column")  # what of a task decides its table


class Source(Protocol):
    """Clients that are built one at a time; and what a person should know of them all."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def make(self, name: str, holds_out: bool) -> Client:
        """Build a client, the same one every time; `holds_out` says whether it holds prompts out for evaluation."""
        ...

    def stocks(self, name: str, held_out: Set[str | Chat]) -> Sequence[Stock]:
        """Return what a client has to train on where nobody trains on `held_out`, for each of its tasks."""
        ...


class OfTasks:
    """The clients under `clients:`. Every different list of tasks is tried at once.

    Clients with the same tasks differ in their seeds alone, and have the same stock. So one client is built for all of
    them, even where a stream's seed might decide: whether its few different prompts are all held out.
    """

    notes: Sequence[str] = ()

    def __init__(self, config: Config) -> None:
        self._config = config
        self._table = lru_cache(maxsize=_TABLES_KEPT)(_load)
        self._first: dict[str, str] = {}  # by what the tasks are, the first client that has them
        self._stocks: dict[str, list[Stock]] = {}  # of these first clients
        self.names = list(config.clients)
        for name, client in config.clients.items():
            if not client.tasks:
                raise ConfigError(f"client {name}: it has no tasks")
            if not re.fullmatch(r"[\w.-]+", name):
                raise ConfigError(
                    f"clients: the name {name!r} also names a file; use letters, digits, '_', '.' and '-'"
                )
            if self._first.setdefault(_different(client), name) == name:
                self._curricula(name, held_out=0)

    def make(self, name: str, holds_out: bool) -> Client:
        client, seed = self._config.clients[name], derive_seed(self._config.seed, name)
        share = -(-self._config.evaluation.prompts // len(client.tasks)) if holds_out else 0
        weights, on_error = tuple(task.weight for task in client.tasks), self._config.rewards.on_error
        return Client(name, self._curricula(name, share), weights, client.reward_scale, seed, on_error)

    def stocks(self, name: str, held_out: Set[str | Chat]) -> Sequence[Stock]:
        first = self._first[_different(self._config.clients[name])]
        if first not in self._stocks:
            curricula = self._curricula(first, held_out=0)
            for curriculum in curricula:
                curriculum.exclude(held_out)
            self._stocks[first] = [curriculum.stock() for curriculum in curricula]
        return self._stocks[first]

    def _curricula(self, name: str, held_out: int) -> tuple[Curriculum, ...]:
        seed = derive_seed(self._config.seed, name)
        try:
            return tuple(
                Curriculum(make_task(task, derive_seed(seed, i), self._read), held_out)
                for i, task in enumerate(self._config.clients[name].tasks)
            )
        except ConfigError as error:
            raise ConfigError(f"client {name}: {error}") from error.__cause__

    def _read(self, task: TaskConfig) -> Table:
        return self._table(*(getattr(task, key) for key in _READ))


class OfPartition:
    """One dataset split into clients; held-out prompts come from each client's own share. Shares are positions."""

    def __init__(self, partition: PartitionConfig, config: Config) -> None:
        self._config, self._task = config, partition.task
        if self._task.dataset is None:
            raise ConfigError("partition.task: only a dataset can be partitioned; set partition.task.dataset")
        if self._task.test_dataset is not None or self._task.test_split is not None:
            raise ConfigError(
                "partition.task: a test set is not split; name it under evaluation.tasks, where it counts for the run"
            )
        self._table = load_table(self._task)
        self._rewards = dataset_rewards(self._task, self._table)
        self._labels = None if partition.column is None else self._table.labels(partition.column)
        shares = split(partition, len(self._table.rows), self._labels, config.seed)
        self._shares, self.notes = shares.rows, shares.notes
        self.names = list(self._shares)

    def make(self, name: str, holds_out: bool) -> Client:
        seed, positions = derive_seed(self._config.seed, name), self._shares[name]
        part = DatasetTask(self._name(name), self._table, seed, self._rewards, positions, self._labels)
        curriculum = Curriculum(part, self._config.evaluation.prompts if holds_out else 0)
        return Client(name, (curriculum,), (1.0,), 1.0, seed, self._config.rewards.on_error)

    def stocks(self, name: str, held_out: Set[str | Chat]) -> Sequence[Stock]:
        table, labels = self._table, self._labels
        left = [i for i in self._shares[name] if table.prompts[i] not in held_out]
        counts = Counter(labels[i] for i in left) if labels else Counter[str]()
        return [Stock(self._name(name), len(left), bool(left), counts, {table.name: table.digest})]

    def _name(self, client: str) -> str:
        return f"{self._task.dataset}[{client}]"


def _different(client: ClientConfig) -> str:
    """Return a text that differs between clients whose tasks do."""
    return repr([replace(task, weight=1.0) for task in client.tasks])


def _load(*values: str | None) -> Table:
    return load_table(TaskConfig(**dict(zip(_READ, values, strict=True))))  # type: ignore[arg-type]
