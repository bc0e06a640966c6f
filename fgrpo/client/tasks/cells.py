"""A dataset's cells as prompts, answers and labels: text as it was written, chats as chats, and nothing guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from fgrpo.records import Chat

_KINDS: list[tuple[Any, str]] = [
    (str, "text"),
    (Mapping, "an object"),
    (list, "a list"),
    (bool, "a truth value"),
    ((int, float), "a number"),
]


class CellError(ValueError):
    """A cell that cannot be what it is needed for; the message says what it holds."""


class WrittenInt(int):
    """A whole number from a text file that remembers how it was written."""

    text: str

    def __new__(cls, text: str) -> WrittenInt:
        number = super().__new__(cls, text)
        number.text = text
        return number


class WrittenFloat(float):
    """Any other number from a text file, likewise: 1.50 stays 1.50."""

    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number


def prompt_of(cell: Any) -> str | Chat:
    """Return a cell as a prompt: text, or a list of chat messages."""
    if isinstance(cell, Sequence) and not isinstance(cell, (str, bytes)) and len(cell) > 0:
        return Chat.of([_message(number, message) for number, message in enumerate(cell, start=1)])
    if not isinstance(cell, str):
        raise CellError(f"{_shown(cell)}, expected text or a list of chat messages")
    return _text(cell)


def answer_of(cell: Any) -> str:
    """Return a cell as an answer: text, or a number as it was written."""
    if isinstance(cell, (WrittenInt, WrittenFloat)):
        return cell.text
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float, Decimal)):
        raise CellError(f"{_shown(cell)}, expected text or a number")
    if isinstance(cell, str):
        return _text(cell)
    if not math.isfinite(cell):
        raise CellError(f"{cell}, expected text or a finite number")
    return format(cell, "f") if isinstance(cell, Decimal) else str(cell)


def label_of(cell: Any) -> str:
    """Return a cell as a label: text, a number, true or false."""
    return str(cell).lower() if isinstance(cell, bool) else answer_of(cell)


def _message(number: int, message: Any) -> dict[str, Any]:
    """Return a message without the empty fields that a table gives to all when one has them."""
    what = f"message {number}"
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise CellError(f"a list whose {what} is {_shown(message)}, expected chat messages with role and content")
    if not isinstance(message["role"], str) or not isinstance(message["content"], str):
        field = "content" if isinstance(message["role"], str) else "role"
        raise CellError(f"a chat whose {what} has as {field} {_shown(message[field])}, expected text")
    return {key: value for key, value in message.items() if value is not None}


def _text(text: str) -> str:
    if not text.strip():
        raise CellError("empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CellError(f"{_shown(text)}, which holds half a character (a lone surrogate)") from None
    return text


def _shown(cell: Any) -> str:
    """Return a cell for a message: what it is, and its beginning."""
    if cell is None:
        return "null"
    kinds: dict[Any, str] = {
        str: "text",
        Mapping: "an object",
        list: "a list",
        bool: "a truth value",
        (int, float): "a number",
    }
    kind = next((kind for types, kind in kinds.items() if isinstance(cell, types)), f"a {type(cell).__name__}")
    try:
        shown = json.dumps(cell)
    except (TypeError, ValueError):
        shown = str(cell)
    shown = shown if len(shown) <= 60 else shown[:59] + "…"
    return f"{kind} ({shown})"
