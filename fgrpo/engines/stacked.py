"""All clients of a round in this process at once: their LoRA adapters stacked over one frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fgrpo.client.evaluation import with_heldout
from fgrpo.client.guard import guarded
from fgrpo.client.round import reply
from fgrpo.client.stacked_lora import Stack, stacked
from fgrpo.client.stacked_training import check_can_stack, train_together
from fgrpo.engines.base import Kept, Observer, Trained, gathered
from fgrpo.engines.in_process import InProcess
from fgrpo.engines.workplace import Workplace
from fgrpo.records import Failure, Reply, Report, ServerState
from fgrpo.stopwatch import Stopwatch


class Stacked(InProcess):
    """The engine whose clients share forward and backward passes; to rounding, it gives what `InProcess` gives.

    Raises:
        ConfigError: the model has adapters that cannot be stacked.
    """

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        check_can_stack(workplace.policy)

    def train(
        self, state: ServerState, clients: Sequence[str], observer: Observer
    ) -> tuple[list[Reply | Failure], Kept]:
        watches = {client: Stopwatch(partial(observer.stage, client)) for client in clients}
        # What goes wrong in a pass that all share is nobody's own.
        trained = guarded("", partial(self._train_all, state, watches))
        if isinstance(trained, Failure):
            trained = [replace(trained, client=client) for client in clients]
        for client in clients:
            observer.stage(client, "done")
        return gathered(trained)

    def _train_all(self, state: ServerState, watches: dict[str, Stopwatch]) -> list[Trained | Failure]:
        here = self._workplace
        built = {client: guarded(client, partial(here.owners.__getitem__, client)) for client in watches}
        members = [client for client in built.values() if not isinstance(client, Failure)]
        results: dict[str, Trained | Failure] = {n: found for n, found in built.items() if isinstance(found, Failure)}
        if not members:
            return list(results.values())
        with stacked(here.policy.model, len(members)) as stack:
            stack.load(state.params_P)
            own_watches = [watches[member.name] for member in members]
            reports = train_together(here.policy, stack, members, here.config, state.round + 1, own_watches)
            for place, report in enumerate(reports):
                if isinstance(report, Failure):
                    results[report.client] = report
                else:
                    answer = partial(self._answer, state, stack, place, report, watches[report.client])
                    results[report.client] = guarded(report.client, answer)
        return [results[client] for client in watches]

    def _answer(self, state: ServerState, stack: Stack, place: int, report: Report, stopwatch: Stopwatch) -> Trained:
        """Return a client's reply, and its new residual where the codec keeps one."""
        here, client = self._workplace, report.client
        with stack.rows(place):
            report = with_heldout(report, here.policy, here.owners[client], here.config, stopwatch)
        residual_P = here.residual(client, state.params_P, state.residuals)
        trained = partial(stack.flatten, place)
        answer = reply(report, trained, self.manifest, state.params_P, residual_P, here.config, stopwatch)
        return answer, None if residual_P is None else state.residuals.keep(client, residual_P, report.round)
