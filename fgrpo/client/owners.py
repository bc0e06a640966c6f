"""All data owners of a configuration, each built when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from fgrpo.client.of_the_run import described, of_the_run
from fgrpo.client.owner import Client
from fgrpo.client.sources import OfPartition, OfTasks, Source
from fgrpo.client.stock import client_data
from fgrpo.config import Config
from fgrpo.errors import ConfigError, FgrpoError
from fgrpo.participation import evaluated, round_size
from fgrpo.records import TEST_SET, Chat, ClientData

_STAY_BUILT = 32  # clients; a task may hold megabytes


class Owners(Mapping[str, Client]):
    """The clients of a configuration, by name in its order; each is built when it is asked for.

    Only the last few stay built: a client that takes no part costs no more than its name. What is wrong with the
    configuration is found at once all the same, every different task is tried, and a client that has nothing to train
    on is known before the first round.

    Attributes:
        taking_part: the clients that have something to train on.
        evaluated: those among them whose held-out prompts the model is evaluated on, and `TEST_SET`, where the run has
            a test set of its own. No client trains on a prompt that anybody holds out, or that is public.
    """

    def __init__(self, config: Config) -> None:
        if bool(config.clients) == (config.partition is not None):
            raise ConfigError("the configuration needs either clients: or partition:, exactly one of them")
        self._source: Source = OfTasks(config) if config.partition is None else OfPartition(config.partition, config)
        round_size(len(self), config.participation)  # now that there is no doubt of how many there are
        sampled = frozenset(evaluated(self._source.names, config))
        heldout = config.aggregation.gain == "heldout"  # then every client's gain is measured on what it holds out
        holding_out = [name for name in self._source.names if heldout or name in sampled]
        self._holding_out = frozenset(holding_out)
        self._made = lru_cache(maxsize=_STAY_BUILT)(self._make)
        self._built = lru_cache(maxsize=_STAY_BUILT)(self._build)
        self._held_out: set[str | Chat] = set()
        self._of_the_run = of_the_run(config)
        for own in self._of_the_run.values():
            self._held_out.update(question.example.prompt for question in own.held_out())
        # How many prompts a client holds out, for each of its tasks.
        self._numbers_held_out = {name: self._hold_out(name) for name in holding_out}
        self.taking_part = [name for name in self if self._can_train(name)]
        if not self.taking_part:
            raise ConfigError(f"no client has anything to train on: {self.describe()[0].notes[0]}")
        round_size(len(self.taking_part), config.participation)
        self.evaluated = [name for name in self.taking_part if name in sampled]
        if TEST_SET in self._of_the_run:
            self.evaluated.append(TEST_SET)

    def _hold_out(self, name: str) -> list[int]:
        try:
            curricula = self._made(name).curricula
        except FgrpoError:
            raise
        except Exception as error:  # whatever a task's own code may raise
            raise ConfigError(f"client {name}: its held-out prompts cannot be drawn: {error!r}") from error
        self._held_out.update(example.prompt for curriculum in curricula for example in curriculum.held_out)
        return [len(curriculum.held_out) for curriculum in curricula]

    def _can_train(self, name: str) -> bool:
        return any(stock.can_train for stock in self._source.stocks(name, self._held_out))

    def describe(self) -> list[ClientData]:
        """Return what each client has to learn from, also those that have nothing; no client is built for it.

        The run's own prompts come last: nobody learns from them.
        """
        first, *others = (self._describe(name) for name in self)
        own = map(described, self._of_the_run.values())
        return [replace(first, notes=[*first.notes, *self._source.notes]), *others, *own]

    def _describe(self, name: str) -> ClientData:
        stocks = self._source.stocks(name, self._held_out)
        return client_data(name, stocks, self._numbers_held_out.get(name, [0] * len(stocks)))

    def _make(self, name: str) -> Client:
        return self._source.make(name, name in self._holding_out)

    def _build(self, name: str) -> Client:
        client = self._made(name)
        for curriculum in client.curricula:
            curriculum.exclude(self._held_out)
        return client.with_what_it_has()

    def __getitem__(self, name: str) -> Client:
        """Return a client; under the names in `OF_THE_RUN` there are those that only evaluate."""
        return self._of_the_run[name] if name in self._of_the_run else self._built(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.names)

    def __len__(self) -> int:
        return len(self._source.names)


def make_clients(config: Config) -> list[Client]:
    """Build all clients that a configuration describes, in its order."""
    return list(Owners(config).values())
