"""Clients in worker processes, handed out one at a time to whichever worker is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from fgrpo.config import Config
from fgrpo.engines.base import Kept, Observer, gathered
from fgrpo.engines.crew import Crew, Died
from fgrpo.engines.worker import Describe, Evaluate, Job, Load, Save, Train, TryOut
from fgrpo.errors import RunError
from fgrpo.records import ClientData, Evaluation, Failure, Reply, ServerState, Trial


class Workers:
    """The engine that plays several clients at once. To be used in a `with`, which ends its processes.

    Args:
        count: worker processes.
        threads: CPU threads of each.

    Raises:
        FgrpoError: see `Crew`.
    """

    downlink_bytes = None

    def __init__(self, config: Config, count: int, threads: int) -> None:
        self._crew = Crew(config, count, threads)
        self.clients, self.manifest = self._crew.opened.clients, self._crew.opened.manifest
        self._seconds: dict[str, float] = {}  # that a client's last turn took

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._crew.close()

    def describe(self) -> list[ClientData]:
        data: list[ClientData] = self._have_done(Describe())
        return data

    def initial_parameters(self) -> Tensor:
        self._have_done(Load())
        return self._crew.params_P.clone()

    def train(
        self, state: ServerState, clients: Sequence[str], observer: Observer
    ) -> tuple[list[Reply | Failure], Kept]:
        self._crew.params_P.copy_(state.params_P)
        # The longest turn first, as far as is known: nobody should begin one when all others end theirs.
        order = sorted(clients, key=lambda client: -self._seconds.get(client, float("inf")))
        jobs = [Train(client, state.round + 1, state.residuals.of(client)) for client in order]
        results = dict(zip(order, self._of_clients(jobs, observer), strict=True))
        replies, residuals = gathered(results[client] for client in clients)
        self._seconds |= {r.client: sum(r.report.seconds.values()) for r in replies if isinstance(r, Reply)}
        return replies, residuals

    def evaluate(self, state: ServerState) -> list[Evaluation | Failure]:
        self._crew.params_P.copy_(state.params_P)
        return self._of_clients([Evaluate(client, state.round) for client in self._crew.opened.evaluated])

    def try_out(self, state: ServerState, payloads: Mapping[str, bytes | None]) -> list[Trial | Failure]:
        self._crew.params_P.copy_(state.params_P)
        return self._of_clients([TryOut(client, payload) for client, payload in payloads.items()])

    def save(self, state: ServerState, folder: Path) -> None:
        self._crew.params_P.copy_(state.params_P)
        self._have_done(Save(folder))

    def _of_clients(self, jobs: Sequence[Train | Evaluate | TryOut], observer: Observer | None = None) -> list[Any]:
        """Return what clients' jobs gave, a `Failure` for one whose worker died of it."""

        def announce(job: Any, stage: str) -> None:
            if observer is not None:
                observer.stage(job.client, stage)

        results = self._crew.do(jobs, announce)
        return [
            Failure(job.client, f"its worker process {result.how}") if isinstance(result, Died) else result
            for job, result in zip(jobs, results, strict=True)
        ]

    def _have_done(self, job: Job) -> Any:
        (result,) = self._crew.do([job])
        if isinstance(result, Died):
            raise RunError(f"engine: a worker process {result.how}")
        return result
