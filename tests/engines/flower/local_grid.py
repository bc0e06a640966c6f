"""A federation in this process: nodes are functions, called when a message is sent to them."""

import itertools
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from fgrpo.engines.flower.client_app import client_app

Play = Callable[[Message], Message | None]


class LocalGrid:
    """What a ServerApp sees of its nodes. A node whose function returns None has not answered (yet).

    Attributes:
        nodes: by number, what a node does with a message; a node that is taken out is away.
        names: by number, the name that a node was registered under, if it was.
        replies: by the message's number, what was answered; tests may take and add.
        sent, answered: every message in order, and every answer.
    """

    def __init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.nodes: dict[int, Play] = {}
        self.names: dict[int, str] = {}
        self.replies: dict[str, Message] = {}
        self.sent: list[Message] = []
        self.answered: list[Message] = []
        self._numbers = itertools.count()

    def add(self, number: int, keys: dict, config: dict, folder: Path) -> None:
        """Add a node with our ClientApp."""
        app = client_app(folder)
        context = Context(1, number, config, RecordDict(), keys)
        self.nodes[number] = lambda message: app(message, context)

    def get_nodes(self):
        return [NodeInfo(node_id=number, name=self.names.get(number, "")) for number in self.nodes]

    def push_messages(self, messages):
        return [self._push(message) for message in messages]

    def _push(self, message):
        number = str(next(self._numbers))
        message.metadata.__dict__["_message_id"] = number
        self.sent.append(message)
        reply = self.nodes[message.metadata.dst_node_id](message)
        if reply is not None:
            self.answered.append(reply)
            self.replies[number] = reply
        return number

    def pull_messages(self, message_ids):
        return [self.replies.pop(number) for number in sorted(message_ids & self.replies.keys(), key=int)]
