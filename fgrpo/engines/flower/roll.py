"""Who plays which client: what nodes say of themselves, and what of it is accepted."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping

from fgrpo.engines.flower.messages import Answer
from fgrpo.records import ClientData

_log = logging.getLogger(__name__)


class Roll:
    """The clients by name, and their nodes.

    A client keeps to its node for as long as that is there. A node that was registered under a name plays the client of
    that name and no other, so that nobody who has another key can be it.

    Args:
        patience: seconds after which a node that has not said who it is is asked once more.

    Attributes:
        data: by client, what it has to learn from.
        held: by node, the fingerprint of the model that it holds.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.data: dict[str, ClientData] = {}
        self.held: dict[int, str] = {}
        self._node_of: dict[str, int] = {}
        self._there: Mapping[int, str] = {}
        self._asked: dict[int, float] = {}  # by node, when it is asked again; never once it has answered

    def strangers(self, there: Mapping[int, str]) -> list[int]:
        """Take note of the nodes that are there with their registered names; return those to ask who they are."""
        self._there = there
        # Whoever comes back is asked again: its clients may be others now.
        self._asked = {node: again for node, again in self._asked.items() if node in there}
        self.held = {node: held for node, held in self.held.items() if node in there}
        return [node for node in there if self._asked.get(node, 0.0) <= time.monotonic()]

    def ask(self, node: int) -> None:
        """Take note that a node was asked, and may be asked again if there is no answer for long."""
        self._asked[node] = time.monotonic() + self._patience

    def enter(self, node: int, answer: Answer | str) -> None:
        """Take note of who a node says it is."""
        if isinstance(answer, str):
            _log.warning("node %d: %s", node, answer)
            return
        self._asked[node] = math.inf
        self.held.setdefault(node, answer.held)  # else its last answer to more than this has told
        for told in answer.results:
            if not isinstance(told, ClientData):
                continue
            refusal = self._refusal(told.client, node)
            if refusal:
                _log.warning("node %d: it says that it has client %s, but %s", node, told.client, refusal)
                continue
            self._node_of[told.client] = node
            self.data[told.client] = told

    def node_of(self, client: str) -> int | None:
        """Return the node of a client; None while it is away."""
        node = self._node_of.get(client)
        return node if node in self._there else None

    def _refusal(self, client: str, node: int) -> str:
        registered, other = self._there.get(node), self.node_of(client)
        if registered and client != registered:
            return f"it was registered as {registered}"
        if other is not None and other != node:
            return f"node {other} has it"
        return ""
