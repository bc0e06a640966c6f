"""The two neighbours of the federated loop: where clients live, and who watches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from fgrpo.records import ClientData, Evaluation, Failure, Record, Reply, ServerState
from fgrpo.wire.parameters import Manifest


class Engine(Protocol):
    """Where clients live: in this process (`fgrpo.engines.in_process`) or on other machines."""

    @property
    def clients(self) -> Sequence[str]:
        """The names of those clients that take part."""
        ...

    @property
    def manifest(self) -> Manifest:
        """The parameters that are trained."""
        ...

    def describe(self) -> Sequence[ClientData]:
        """Return what each client has to learn from, also those that have nothing and take no part."""
        ...

    def train(self, state: ServerState) -> tuple[Iterable[Reply | Failure], Mapping[str, Tensor]]:
        """Have every client train from the global model.

        Returns:
            The replies in any order, and the new compression residuals of those clients that leave theirs here.
        """
        ...

    def evaluate(self, state: ServerState) -> Iterable[Evaluation | Failure]:
        """Evaluate the global model on every client's held-out prompts."""
        ...


class Observer(Protocol):
    """Who watches a run: the progress display, the writers of metrics."""

    def stage(self, who: str, stage: str) -> None:
        """A stage begins, at a client or at the `server`."""
        ...

    def record(self, record: Record) -> None:
        """Something was measured. Records of one round are only on disk once the round is whole."""
        ...
