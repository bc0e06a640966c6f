"""What federation is measured against: all data in one place, and every client by itself.

Both are engines, so the loop, the evaluation and the records are a federation's, and every original client is evaluated
on the prompts that it would hold out there. Nobody trains on any client's held-out prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fgrpo.client.guard import guarded
from fgrpo.client.owner import Client
from fgrpo.client.round import client_round
from fgrpo.config import Config
from fgrpo.engines.base import Kept, Observer, Trained, gathered
from fgrpo.engines.workplace import Workplace
from fgrpo.participation import round_size
from fgrpo.records import ClientData, Evaluation, Failure, Reply, ServerState, Trial
from fgrpo.seeds import derive_seed
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import Manifest, flatten

_POOLED = "pooled"


def by_itself(config: Config) -> Config:
    """Return the configuration by which the only client there is takes part in every round.

    It weighs 1 whatever it gains, so no reply is tried out.
    """
    return replace(config, participation=None, aggregation=replace(config.aggregation, gain="reward"))


def pooled_client(clients: Sequence[Client], config: Config) -> Client:
    """Return one client that has all clients' prompts and draws from each of them as often.

    Its rewards are unscaled: there is nobody left whose unit would be another.
    """
    curricula = tuple(curriculum for client in clients for curriculum in client.curricula)
    weights = tuple(weight / sum(client.task_weights) for client in clients for weight in client.task_weights)
    return Client(_POOLED, curricula, weights, 1.0, derive_seed(config.seed, _POOLED), config.rewards.on_error)


class Pooled:
    """Centralised training: in a round as many samples as the federation's clients draw together.

    A round is as many steps of the same size as theirs together, one after another.
    """

    downlink_bytes = None

    def __init__(self, workplace: Workplace) -> None:
        owners, config, policy = workplace.owners, workplace.config, workplace.policy
        self.clients = [_POOLED]
        self.manifest = Manifest.of(policy.model)
        self._workplace = workplace
        self._member = pooled_client([owners[name] for name in owners.taking_part], config)
        steps = config.train.local_steps * round_size(len(owners.taking_part), config.participation)
        self._config = replace(config, train=replace(config.train, local_steps=steps))

    def describe(self) -> list[ClientData]:
        return self._workplace.owners.describe()

    def initial_parameters(self) -> Tensor:
        return flatten(self._workplace.policy.model)

    def train(
        self, state: ServerState, clients: Sequence[str], observer: Observer
    ) -> tuple[list[Reply | Failure], Kept]:
        def play() -> Trained:
            stopwatch = Stopwatch(lambda stage: observer.stage(_POOLED, stage))
            policy, number = self._workplace.policy, state.round + 1
            return client_round(self._member, policy, state.params_P, None, number, self._config, stopwatch), None

        trained = guarded(_POOLED, play)
        observer.stage(_POOLED, "done")
        return gathered([trained])

    def evaluate(self, state: ServerState) -> Iterator[Evaluation | Failure]:
        for client in self._workplace.owners.evaluated:
            yield self._workplace.evaluate(client, state.params_P, state.round)

    def try_out(self, state: ServerState, payloads: Mapping[str, bytes | None]) -> Iterator[Trial | Failure]:
        return self._workplace.trials(state.params_P, payloads)

    def save(self, state: ServerState, folder: Path) -> None:
        self._workplace.save(state.params_P, folder)


class Alone:
    """One client that trains on its own data, in every round.

    Args:
        start_P: what `start` gave before any client trained on this workplace.
    """

    downlink_bytes = None

    def __init__(self, workplace: Workplace, client: str, start_P: Tensor) -> None:
        self.clients = [client]
        self.manifest = Manifest.of(workplace.policy.model)
        self._workplace, self._client, self._start_P = workplace, client, start_P

    @staticmethod
    def start(workplace: Workplace) -> Tensor:
        """Return the parameters as the model was loaded, float32 [P]."""
        return flatten(workplace.policy.model)

    def describe(self) -> list[ClientData]:
        return [data for data in self._workplace.owners.describe() if data.client == self._client]

    def initial_parameters(self) -> Tensor:
        return self._start_P.clone()

    def train(
        self, state: ServerState, clients: Sequence[str], observer: Observer
    ) -> tuple[list[Reply | Failure], Kept]:
        def announce(stage: str) -> None:
            observer.stage(self._client, stage)

        trained = self._workplace.train(self._client, state.params_P, state.residuals, state.round + 1, announce)
        announce("done")
        return gathered([trained])

    def evaluate(self, state: ServerState) -> Iterator[Evaluation | Failure]:
        yield self._workplace.evaluate(self._client, state.params_P, state.round)

    def try_out(self, state: ServerState, payloads: Mapping[str, bytes | None]) -> Iterator[Trial | Failure]:
        return self._workplace.trials(state.params_P, payloads)

    def save(self, state: ServerState, folder: Path) -> None:
        self._workplace.save(state.params_P, folder)
