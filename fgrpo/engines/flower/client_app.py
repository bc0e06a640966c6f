"""The app on a node: a message comes, the node answers."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fgrpo.engines.flower.resident import ask_resident
from fgrpo.errors import FgrpoError

_log = logging.getLogger(__name__)


def client_app(folder: Path) -> ClientApp:
    """Return the ClientApp of an app that lies in a folder."""
    app = ClientApp()

    def reply(message: Message, context: Context) -> Message:
        try:
            content = _given(message.content, context, folder)
        except FgrpoError as error:
            _log.error("%s", error)
            content = RecordDict()  # why is the owner's to see
        return Message(content, reply_to=message)

    app.query()(reply)
    app.train()(reply)
    app.evaluate()(reply)
    return app


def _given(content: RecordDict, context: Context, folder: Path) -> RecordDict:
    if "clients" in context.node_config:
        return ask_resident(content, context, folder)
    from fgrpo.engines.flower.node import reply  # a simulation's process outlives the message

    return reply(content, context.run_config, context.node_config, folder)
