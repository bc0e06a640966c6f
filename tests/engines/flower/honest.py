"""A node that answers at once: no model, and deltas made up from the client's name and the round."""

import threading

import torch
from flwr.app import Message, RecordDict

from fgrpo.engines.flower.messages import Answer, Ask
from fgrpo.records import ClientData, Evaluation, Reply, Report
from fgrpo.seeds import derive_seed
from fgrpo.wire.payload import Header, pack
from fgrpo_kernels.codec import encode


def report(client, number, **changes):
    fields = {"sequences": 16, "tokens": 60, "reward_mean": 0.5, "reward_std": 0.1, "completion_length": 3.75}
    return Report(client, number, **{**fields, "degenerate": 0.0, "metrics": {}, "seconds": {}, "rows": 100, **changes})


def delta(client, number, size):
    generator = torch.Generator().manual_seed(derive_seed(client, number))
    return 1e-3 * torch.randn(size, generator=generator)


def payload(delta_P, client, number, manifest, base, /, **header):
    made = {"client": client, "round": number, "manifest": manifest.hash, "base": base, **header}
    return pack(encode(delta_P), Header(**made))


class Honest:
    """What to put into `LocalGrid.nodes`.

    Attributes:
        held_P: the model that it holds.
        asks: what it was asked.
        replies: what it answered, by round.
    """

    def __init__(self, manifest, *clients):
        self.manifest, self.clients, self.held_P = manifest, clients, None
        self.asks, self.replies = [], {}

    def __call__(self, message):
        ask = Ask.unpack(message.content)
        self.asks.append(ask)
        return self.send(self.answer(ask), message)

    def send(self, answer, message):
        """What becomes of an answer; here is where it can go wrong."""
        content = answer if isinstance(answer, RecordDict) else answer.pack()
        return Message(content, reply_to=message)

    def answer(self, ask):
        if ask.task == "describe":
            return Answer(tuple(ClientData(client, 100, 8, {}, {}) for client in self.clients))
        try:
            self.held_P = ask.shipment.open(self.held_P)
        except ValueError:
            raise AssertionError("an honest node gets what it can use") from None
        results = tuple(self.result(client, ask) for client in ask.clients)
        return Answer(results, ask.shipment.model)

    def result(self, client, ask):
        if ask.task == "evaluate":
            return Evaluation(client, ask.round, 8, 0.5, 0.5)
        made = payload(
            delta(client, ask.round, self.manifest.size), client, ask.round, self.manifest, ask.shipment.model
        )
        self.replies[ask.round] = Reply(client, report(client, ask.round), made)
        return self.replies[ask.round]


class Silent(Honest):
    """One that does not answer its first messages of a task, and keeps what it would have answered."""

    def __init__(self, manifest, *clients, times=1, task="train"):
        super().__init__(manifest, *clients)
        self._left, self._task, self.late = times, task, []

    def send(self, answer, message):
        reply = super().send(answer, message)
        if self.asks[-1].task != self._task or not self._left:
            return reply
        self._left -= 1
        self.late.append((message.metadata.message_id, reply))
        return None


class Behind(Honest):
    """One whose SuperNode has sent a stray reply: it holds each answer back until the next message comes."""

    def __init__(self, manifest, grid, *clients):
        super().__init__(manifest, *clients)
        self._grid, self._held = grid, None

    def send(self, answer, message):
        reply = super().send(answer, message)
        if self._held is not None:
            number, held = self._held
            self._grid.replies[number] = held
        self._held = (message.metadata.message_id, reply)
        return None


class Slow(Honest):
    """One that takes its time for each message but the first."""

    def __init__(self, manifest, grid, seconds, *clients):
        super().__init__(manifest, *clients)
        self._grid, self._seconds = grid, seconds

    def send(self, answer, message):
        reply = super().send(answer, message)
        if len(self.asks) == 1:
            return reply
        arrives = (message.metadata.message_id, reply)
        threading.Timer(self._seconds, self._grid.replies.__setitem__, arrives).start()
        return None
