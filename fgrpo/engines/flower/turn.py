"""One question to some clients, and what has become of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace

from fgrpo.engines.base import Observer
from fgrpo.engines.flower.exchange import Sent
from fgrpo.engines.flower.messages import Answer, Ask, Result
from fgrpo.records import Evaluation, Failure, Reply
from fgrpo.wire.shipment import Shipment

_log = logging.getLogger(__name__)


class Turn:
    """Clients that are asked the same, and their answers.

    Args:
        ask: what they are asked, without the model and without the names.
        wanted: the kind of record that answers it.
    """

    def __init__(
        self, ask: Ask, clients: Sequence[str], wanted: type[Reply] | type[Evaluation], observer: Observer | None = None
    ) -> None:
        self.ask, self.clients = ask, clients
        self._wanted, self._observer = wanted, observer
        self._open: dict[int, list[str]] = {}  # by node, the clients that it has yet to answer for
        self._sent: dict[int, float] = {}  # by node, when it was asked
        self._answers: dict[str, list[Result]] = {}
        self._lost: dict[str, str] = {}  # by client, why there is no answer
        self._uncalled: list[Result] = []

    @property
    def answered(self) -> int:
        """How many clients have been answered for, be it with a failure."""
        return len(self._answers)

    @property
    def is_open(self) -> bool:
        """Whether an answer may yet come."""
        return bool(self._open)

    def is_of(self, ask: Ask) -> bool:
        """Whether a message asked this."""
        return (ask.task, ask.round) == (self.ask.task, self.ask.round)

    def unanswered(self) -> list[str]:
        return [client for client in self.clients if client not in self._answers]

    def results(self) -> list[Result]:
        """Return what came uncalled, then every answer, and a failure for each client without one."""
        lost = [Failure(client, self._lost.get(client, "it was not asked")) for client in self.unanswered()]
        return [*self._uncalled, *(one for client in self.clients for one in self._answers.get(client, ())), *lost]

    def assign(self, client: str, node: int) -> None:
        """Leave a client to its node."""
        self._open.setdefault(node, []).append(client)
        self._announce(client, self.ask.task)

    def nodes(self) -> list[int]:
        """Return those that have yet to answer."""
        return list(self._open)

    def note_sent(self, node: int) -> None:
        """Take note that a node is asked now."""
        self._sent[node] = time.monotonic()

    def silent(self, seconds: float) -> list[int]:
        """Return the nodes that have owed an answer for so long, each but once for each time that it was asked."""
        late = [node for node in self._open if self._sent.get(node, math.inf) + seconds <= time.monotonic()]
        for node in late:
            del self._sent[node]
        return late

    def ask_of(self, node: int, shipment: Shipment) -> Ask:
        """Return what a node is to be asked."""
        clients = tuple(self._open[node])
        heard = {client: self.ask.heard[client] for client in clients if client in self.ask.heard}
        return replace(self.ask, clients=clients, heard=heard, shipment=shipment)

    def take(self, sent: Sent, answer: Answer) -> None:
        """Take what a node answers for the clients that it was asked about, and for nobody else."""
        self._open.pop(sent.node, None)
        asked = [client for client in sent.ask.clients if client not in self._answers]
        for client in asked:
            told: list[Result] = [
                one for one in answer.results if one.client == client and isinstance(one, Failure | self._wanted)
            ]
            self._answers[client] = told or [Failure(client, f"its node answered, but did not {self.ask.task}")]
            self._announce(client, "done")
        for stranger in {one.client for one in answer.results}.difference(sent.ask.clients):
            self._uncalled.append(Failure(f"node-{sent.node}", f"it answered for {stranger}, which it was not asked"))

    def take_late(self, sent: Sent, answer: Answer | str) -> None:
        """Take an answer to an earlier question: a reply goes on to those who judge replies, and refuse it."""
        _log.warning(
            "round %d: node %d answers %s of round %d", self.ask.round, sent.node, sent.ask.task, sent.ask.round
        )
        if isinstance(answer, Answer) and self._wanted is Reply:
            self._uncalled += [one for one in answer.results if isinstance(one, Reply)]

    def lose(self, client: str, reason: str) -> None:
        """Take note that there will be no answer for a client, as things are."""
        self._lost[client] = reason
        self._announce(client, "done")

    def lose_node(self, node: int, reason: str) -> None:
        """Take note that there will be none of a node."""
        for client in self._open.pop(node, ()):
            self.lose(client, reason)

    def close(self, reason: str) -> None:
        """Wait for nobody any more."""
        for node in self.nodes():
            self.lose_node(node, reason)

    def _announce(self, client: str, stage: str) -> None:
        if self._observer is not None:
            self._observer.stage(client, stage)
