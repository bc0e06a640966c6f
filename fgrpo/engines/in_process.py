"""All clients in this process, one after another, sharing one copy of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fgrpo.engines.base import Kept, Observer, Trained, gathered
from fgrpo.engines.workplace import Workplace
from fgrpo.records import ClientData, Evaluation, Failure, Reply, ServerState, Trial
from fgrpo.wire.parameters import Manifest, flatten


class InProcess:
    """The engine that starts nothing."""

    downlink_bytes = None

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self.clients = workplace.owners.taking_part
        self.manifest = Manifest.of(workplace.policy.model)

    def describe(self) -> list[ClientData]:
        return self._workplace.owners.describe()

    def initial_parameters(self) -> Tensor:
        return flatten(self._workplace.policy.model)

    def train(
        self, state: ServerState, clients: Sequence[str], observer: Observer
    ) -> tuple[list[Reply | Failure], Kept]:
        return gathered(self._train(client, state, observer) for client in clients)

    def _train(self, client: str, state: ServerState, observer: Observer) -> Trained | Failure:
        def announce(stage: str) -> None:
            observer.stage(client, stage)

        trained = self._workplace.train(client, state.params_P, state.residuals, state.round + 1, announce)
        announce("done")
        return trained

    def evaluate(self, state: ServerState) -> Iterator[Evaluation | Failure]:
        for client in self._workplace.owners.evaluated:
            yield self._workplace.evaluate(client, state.params_P, state.round)

    def try_out(self, state: ServerState, payloads: Mapping[str, bytes | None]) -> Iterator[Trial | Failure]:
        return self._workplace.trials(state.params_P, payloads)

    def save(self, state: ServerState, folder: Path) -> None:
        self._workplace.save(state.params_P, folder)
