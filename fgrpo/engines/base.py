"""The two neighbours of the federated loop: where clients live, and who watches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fgrpo.records import ClientData, Evaluation, Failure, Record, Reply, ServerState, Trial
from fgrpo.residuals import StoredTensor
from fgrpo.wire.parameters import Manifest

Kept = dict[str, Tensor | StoredTensor]  # new residuals by client, as `Residuals.keep` returns them
Trained = tuple[Reply, Tensor | StoredTensor | None]  # one client's reply and its new residual


class Observer(Protocol):
    """Who watches a run: the progress display, the writers of metrics."""

    def stage(self, who: str, stage: str) -> None:
        """A stage begins, at a client or at the `server`; a client's last one is `done`. Several may be at work."""
        ...

    def record(self, record: Record) -> None:
        """Something was measured. Records of one round are only on disk once the round is whole."""
        ...


class Engine(Protocol):
    """Where clients live: in this process, in worker processes, or on other machines.

    A client's own trouble, whatever it is, becomes a `Failure` of that client.
    """

    @property
    def clients(self) -> Sequence[str]:
        """The names of those clients that take part."""
        ...

    @property
    def downlink_bytes(self) -> Mapping[str, int] | None:
        """What was sent to clients for the last call of `train` and for evaluations before it.

        None where clients live on this machine: nothing is sent, and their numbers are our own and believed.
        """
        ...

    @property
    def manifest(self) -> Manifest:
        """The parameters that are trained."""
        ...

    def describe(self) -> Sequence[ClientData]:
        """Return what each client has to learn from, also those that have nothing and take no part."""
        ...

    def initial_parameters(self) -> Tensor:
        """Return the trained parameters as the model was loaded, float32 [P]; to be asked before any round."""
        ...

    def train(
        self, state: ServerState, clients: Sequence[str], observer: Observer
    ) -> tuple[list[Reply | Failure], Kept]:
        """Have some clients train from the global model.

        Returns:
            Their replies, and the new residuals of those that leave theirs here.
        """
        ...

    def evaluate(self, state: ServerState) -> Iterable[Evaluation | Failure]:
        """Evaluate the global model on the held-out prompts of every client that has some and takes part, in order."""
        ...

    def try_out(self, state: ServerState, payloads: Mapping[str, bytes | None]) -> Iterable[Trial | Failure]:
        """Score the global model with each payload's delta on top, None being no delta, on the run's public prompts."""
        ...

    def save(self, state: ServerState, folder: Path) -> None:
        """Write the model with the global parameters (or its adapter) and tokenizer as ordinary transformers files."""
        ...


def gathered(results: Iterable[Trained | Failure]) -> tuple[list[Reply | Failure], Kept]:
    """Return what single clients gave in the form of `Engine.train`."""
    replies: list[Reply | Failure] = []
    residuals: Kept = {}
    for result in results:
        if isinstance(result, Failure):
            replies.append(result)
            continue
        reply, residual = result
        replies.append(reply)
        if residual is not None:
            residuals[reply.client] = residual
    return replies, residuals
