"""Messages on their way: sent, answered, answered too late, or lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fgrpo.engines.flower.messages import Answer, Ask
from fgrpo.errors import PayloadError
from fgrpo.wire.answers import printable

_log = logging.getLogger(__name__)
_TYPES = {"describe": MessageType.QUERY, "train": MessageType.TRAIN, "evaluate": MessageType.EVALUATE}
_PAUSES = (0.05, 1.0)  # seconds between two looks, from the first to the longest


@dataclass(frozen=True)
class Sent:
    """A message to a node that has not been answered yet."""

    node: int
    ask: Ask


class Exchange:
    """The server's side of the mail.

    Args:
        most_bytes: of one client's payload.
    """

    def __init__(self, grid: Grid, most_bytes: int) -> None:
        self._grid, self._most_bytes = grid, most_bytes
        self._open: dict[str, Sent] = {}

    def nodes(self) -> dict[int, str]:
        """Return the nodes that are there, each with the name that it was registered under, or an empty one."""
        return {node.node_id: node.name for node in self._grid.get_nodes()}

    def send(self, node: int, ask: Ask, lifetime: float | None) -> bool:
        """Send a message that is forgotten after its lifetime in seconds; False if it could not be sent."""
        message = Message(ask.pack(), node, _TYPES[ask.task], ttl=lifetime, group_id=str(ask.round))
        numbers = [number for number in self._grid.push_messages([message]) if number]  # Flower's None says: refused
        if not numbers:
            return False
        self._open[numbers[0]] = Sent(node, ask)
        return True

    def receive(self) -> list[tuple[Sent, Answer | str]]:
        """Return what has come since the last call: answers, or one line on why there will be none."""
        if not self._open:
            return []
        came = []
        for message in self._grid.pull_messages(set(self._open)):
            sent = self._open.pop(message.metadata.reply_to_message_id, None)
            if sent is not None:  # else nothing was asked
                came.append((sent, self._read(message)))
        return came

    def until(self, end: float | None) -> Iterator[list[tuple[Sent, Answer | str]]]:
        """Yield what comes, again and again, to a time of `time.monotonic` or for ever."""
        pause, longest = _PAUSES
        while True:
            came = self.receive()
            yield came
            left = longest if end is None else end - time.monotonic()
            if left <= 0:
                return
            pause = _PAUSES[0] if came else min(1.5 * pause, longest)
            time.sleep(min(pause, left))

    def forget(self, older_than: int) -> None:
        """Wait no longer for answers to rounds before one; they would be of no use, nor would word of them.

        Who a node is stays of use, whenever it says so.
        """
        self._open = {
            number: sent
            for number, sent in self._open.items()
            if sent.ask.task == "describe" or sent.ask.round >= older_than
        }

    def _read(self, message: Message) -> Answer | str:
        if message.has_error():
            return f"its node gave no answer: {printable(message.error.reason or f'code {message.error.code}')}"
        try:
            return Answer.unpack(message.content, self._most_bytes)
        except PayloadError as error:
            return str(error)
