"""The engine whose clients live on the nodes of a Flower federation."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from flwr.serverapp import Grid
from torch import Tensor

from fgrpo.client.evaluation import evaluate
from fgrpo.client.guard import guarded
from fgrpo.client.of_the_run import described, of_the_run
from fgrpo.client.policy import Policy
from fgrpo.client.trial import try_out
from fgrpo.config import Config
from fgrpo.engines.base import Kept, Observer
from fgrpo.engines.flower.exchange import Exchange, Sent
from fgrpo.engines.flower.messages import Answer, Ask
from fgrpo.engines.flower.roll import Roll
from fgrpo.engines.flower.turn import Turn
from fgrpo.engines.workplace import save_model
from fgrpo.participation import evaluated
from fgrpo.records import PUBLIC, TEST_SET, ClientData, Evaluation, Failure, Reply, ServerState, Trial
from fgrpo.wire.parameters import Manifest, flatten, load_flat
from fgrpo.wire.payload import most_bytes
from fgrpo.wire.shipment import Outbox

_log = logging.getLogger(__name__)
_PATIENCE = 60.0  # seconds for clients of a run that goes on, where `flower.deadline` says nothing
_PAUSE = 1.0  # seconds before those who owe an answer are asked again
_SILENCE = 120.0  # seconds after which a silent node is asked who it is, or half the deadline if that is less


class Flower:
    """Sends the global model to nodes and takes what they answer, as far as it comes in time.

    It waits until `flower.min_clients` have come; the clients of the run are those that are there then.

    Args:
        known: the clients of the run that goes on; they are waited for until the deadline, and one of them for ever.

    Attributes:
        downlink_bytes: by client, what was sent to its node since the round before, in the last call of `train`.
    """

    def __init__(self, grid: Grid, config: Config, known: Sequence[str] = ()) -> None:
        self._config = config
        self._policy = Policy.load(config)
        self._initial_P = flatten(self._policy.model)
        self.manifest = Manifest.of(self._policy.model)
        self._of_the_run = of_the_run(config)
        self._experiment = _digest(config.output_dir, config.seed, self.manifest.hash)
        self._outbox, self._roll = Outbox(self._initial_P), Roll(self._silence(_PATIENCE))
        self._exchange = Exchange(grid, most_bytes(self.manifest.size))
        self.downlink_bytes: Mapping[str, int] = {}
        self._shipped = Counter[str]()
        self._wait_for_clients(known)
        self.clients = sorted({*known, *(name for name, data in self._roll.data.items() if data.rows != 0)})

    def describe(self) -> list[ClientData]:
        return [
            *(self._roll.data[name] for name in sorted(self._roll.data)),
            *map(described, self._of_the_run.values()),
        ]

    def initial_parameters(self) -> Tensor:
        return self._initial_P

    def train(
        self, state: ServerState, clients: Sequence[str], observer: Observer
    ) -> tuple[list[Reply | Failure], Kept]:
        heard = {client: state.history[client].last for client in clients if client in state.history}
        turn = Turn(Ask("train", self._experiment, state.round + 1, heard=heard), clients, Reply, observer)
        self._play(turn, state, self._config.flower.min_replies)
        self.downlink_bytes, self._shipped = dict(self._shipped), Counter()
        self._exchange.forget(older_than=state.round)
        return [result for result in turn.results() if isinstance(result, Reply | Failure)], {}

    def evaluate(self, state: ServerState) -> list[Evaluation | Failure]:
        asked = evaluated(self.clients, self._config)
        turn = Turn(Ask("evaluate", self._experiment, state.round), asked, Evaluation)
        self._play(turn, state, 0)
        results = [result for result in turn.results() if isinstance(result, Evaluation | Failure)]
        test_set = self._of_the_run.get(TEST_SET)
        if test_set is None:
            return results
        load_flat(self._policy.model, state.params_P)
        return [*results, guarded(TEST_SET, lambda: evaluate(self._policy, test_set, self._config, state.round))]

    def try_out(self, state: ServerState, payloads: Mapping[str, bytes | None]) -> Iterator[Trial | Failure]:
        for client, payload in payloads.items():
            yield try_out(self._policy, self._of_the_run[PUBLIC], state.params_P, client, payload, self._config)

    def save(self, state: ServerState, folder: Path) -> None:
        save_model(self._policy, state.params_P, folder)

    def _play(self, turn: Turn, state: ServerState, least: int) -> None:
        """Ask a turn's clients until all have answered, or the deadline is over and at least so many have."""
        self._outbox.load(state.params_P)
        least = min(least, len(turn.clients))
        while True:
            self._call_roll()
            self._send(turn)
            for came in self._exchange.until(self._end()):
                for sent, answer in came:
                    self._take(sent, answer, turn)
                if not turn.is_open:
                    break
                self._wake(turn)
            turn.close(f"no answer within {self._config.flower.deadline} s")
            if turn.answered >= least:
                return
            _log.warning("round %d: %d of %d needed answers; asking again", turn.ask.round, turn.answered, least)
            time.sleep(_PAUSE)

    def _send(self, turn: Turn) -> None:
        for client in turn.unanswered():
            node = self._roll.node_of(client)
            if node is None:
                turn.lose(client, "its node is away")
            else:
                turn.assign(client, node)
        for node in turn.nodes():
            self._ship(turn, node)

    def _ship(self, turn: Turn, node: int) -> None:
        shipment = self._outbox.pack(self._roll.held.get(node, ""))
        ask = turn.ask_of(node, shipment)
        if self._exchange.send(node, ask, self._lifetime()):
            self._shipped[ask.clients[0]] += shipment.nbytes
            turn.note_sent(node)
        else:
            turn.lose_node(node, "nothing could be sent to its node")

    def _take(self, sent: Sent, answer: Answer | str, turn: Turn | None) -> None:
        """Put an answer where it belongs."""
        if sent.ask.task == "describe":
            self._roll.enter(sent.node, answer)
            return
        if isinstance(answer, Answer):
            self._roll.held[sent.node] = answer.held
        if turn is None:
            return
        if not turn.is_of(sent.ask):
            turn.take_late(sent, answer)
        elif isinstance(answer, str):
            turn.lose_node(sent.node, answer)
        elif not answer.lacks:
            turn.take(sent, answer)
        elif sent.ask.shipment is not None and sent.ask.shipment.kind == "whole":
            turn.lose_node(sent.node, "its node cannot use the model that it was sent")
        else:
            self._ship(turn, sent.node)

    def _call_roll(self) -> None:
        for node in self._roll.strangers(self._exchange.nodes()):
            if self._ask_who(node):
                self._roll.ask(node)

    def _wake(self, turn: Turn) -> None:
        """Ask silent nodes something else: a SuperNode of Flower 1.42 may hold an answer back until it is.

        That is one whose process has answered a message that the SuperNode itself dropped, as the run was over when it
        confirmed that. It takes the reply for that to the next message, sends it, and stays one reply behind.
        """
        for node in turn.silent(self._silence(math.inf)):
            if self._ask_who(node):
                _log.info("round %d: node %d has not answered yet; asked who it is", turn.ask.round, node)

    def _ask_who(self, node: int) -> bool:
        return self._exchange.send(node, Ask("describe", self._experiment), 5 * _SILENCE)

    def _wait_for_clients(self, known: Sequence[str]) -> None:
        least = 1 if known else self._config.flower.min_clients  # some of the known may never come back
        end = time.monotonic() + (self._config.flower.deadline or _PATIENCE)
        told = -1
        while len(self._roll.data) < least or (set(known) - self._roll.data.keys() and time.monotonic() < end):
            if len(self._roll.data) != told:
                told = len(self._roll.data)
                _log.warning("clients there: %d, waiting for %d", told, max(least, len(known)))
            self._call_roll()
            for came in self._exchange.until(time.monotonic() + _PAUSE):
                for sent, answer in came:
                    self._take(sent, answer, None)
                if came:
                    break

    def _end(self) -> float | None:
        return None if self._config.flower.deadline is None else time.monotonic() + self._config.flower.deadline

    def _silence(self, wait: float) -> float:
        """Return after how many seconds a silent node is asked who it is; `wait` is the deadline where none is set."""
        return min(_SILENCE, (self._config.flower.deadline or wait) / 2)

    def _lifetime(self) -> float | None:
        """Return how long a message counts: twice the deadline, so that a late answer still shows as one."""
        return None if self._config.flower.deadline is None else 2 * self._config.flower.deadline


def _digest(*parts: object) -> str:
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()
