"""All clients in this process, one after another, sharing one copy of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fgrpo.client.evaluation import evaluate
from fgrpo.client.owners import Client
from fgrpo.client.policy import Policy
from fgrpo.client.round import client_round
from fgrpo.config import Config
from fgrpo.engines.base import Observer
from fgrpo.errors import FgrpoError
from fgrpo.records import ClientData, Evaluation, Failure, Reply, ServerState
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import Manifest, load_flat


class InProcess:
    """The engine that needs no server."""

    def __init__(self, members: Sequence[Client], policy: Policy, config: Config, observer: Observer) -> None:
        self._all, self._policy, self._config, self._observer = members, policy, config, observer
        self._members = [client for client in members if client.can_train]
        self.clients = [client.name for client in self._members]
        self.manifest = Manifest.of(policy.model)

    def describe(self) -> list[ClientData]:
        return [client.data() for client in self._all]

    def train(self, state: ServerState) -> tuple[list[Reply | Failure], dict[str, Tensor]]:
        replies: list[Reply | Failure] = []
        residuals = {}
        for client in self._members:
            residual_P = self._residual(client, state)
            try:
                replies.append(self._train(client, state, residual_P))
            except FgrpoError as error:
                replies.append(Failure(client.name, str(error)))
            if residual_P is not None:
                residuals[client.name] = residual_P
        return replies, residuals

    def _train(self, client: Client, state: ServerState, residual_P: Tensor | None) -> Reply:
        stopwatch = Stopwatch(lambda stage: self._observer.stage(client.name, stage))
        number = state.round + 1
        return client_round(client, self._policy, state.params_P, residual_P, number, self._config, stopwatch)

    def _residual(self, client: Client, state: ServerState) -> Tensor | None:
        if not self._config.codec.error_feedback:
            return None
        past = state.residuals.get(client.name)
        return torch.zeros_like(state.params_P) if past is None else past.clone()

    def evaluate(self, state: ServerState) -> Iterator[Evaluation | Failure]:
        load_flat(self._policy.model, state.params_P)
        for client in self._members:
            try:
                yield evaluate(self._policy, client, self._config, state.round)
            except FgrpoError as error:
                yield Failure(client.name, str(error))
