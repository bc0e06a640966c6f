"""What a node tells in text: records as JSON, of which nothing is believed but what is checked here.

A report's numbers are the server's to judge (`fgrpo.server.validation`); here it only gets its fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fgrpo.errors import PayloadError
from fgrpo.records import ClientData, Evaluation, Failure, Report, from_json, to_json

Told = Report | Evaluation | ClientData | Failure
MOST_TEXT = 1 << 20  # bytes of one node's answer without its payloads
_MOST_LINE = 300  # characters
_NAME = re.compile(r"\w[\w.-]{0,63}")


def to_text(told: Iterable[Told]) -> str:
    """Return records as one text."""
    return json.dumps(
        [{"type": "failure", **asdict(one)} if isinstance(one, Failure) else to_json(one) for one in told]
    )


def from_text(text: object) -> list[Told]:
    """Read back what `to_text` wrote, or somebody else.

    Raises:
        PayloadError: in one printable line, what of it is not what it should be.
    """
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise PayloadError(f"answer: expected a text of at most {MOST_TEXT} characters")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise PayloadError("answer: not JSON; was it cut?") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise PayloadError("answer: expected a list of records")
    return [_record(entry) for entry in entries]


def is_name(name: object) -> bool:
    """Whether a client may be called so: the name is also that of files."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def printable(text: object) -> str:
    """Return one short line without control characters, whatever a node sent."""
    line = re.sub(r"[^ -~]", lambda match: ascii(match[0])[1:-1], str(text))
    return line if len(line) <= _MOST_LINE else line[:_MOST_LINE] + "..."


def _record(entry: dict[str, Any]) -> Told:
    try:
        if entry.get("type") == "failure":
            record: Any = Failure(entry["client"], printable(entry["reason"]))
        else:
            record = from_json(entry)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PayloadError(f"answer: a record with the fields {printable(sorted(map(str, entry)))}") from None
    if not is_name(record.client):
        raise PayloadError(f"answer: {printable(repr(record.client))} is no name of a client")
    if isinstance(record, Evaluation | ClientData):
        return outward(_checked(record))
    if not isinstance(record, Failure | Report):
        raise PayloadError("answer: a record that only a server makes")
    return record


def outward(told: Evaluation | ClientData) -> Evaluation | ClientData:
    """Return what of a record is anybody else's business: numbers, and nothing that shows what the data are."""
    if isinstance(told, Evaluation):
        return Evaluation(told.client, told.round, told.prompts, told.accuracy, told.score)
    return ClientData(told.client, told.rows, told.held_out, {}, {})


def _checked(told: Evaluation | ClientData) -> Evaluation | ClientData:
    if isinstance(told, ClientData):
        if not (told.rows is None or _is_count(told.rows)) or not _is_count(told.held_out):
            raise PayloadError(f"answer: client {told.client}'s numbers of rows are none")
        return told
    whole = _is_count(told.round) and _is_count(told.prompts) and told.prompts > 0
    if not whole or not (_is_number(told.accuracy) and 0 <= told.accuracy <= 1 and _is_number(told.score)):
        raise PayloadError(f"answer: client {told.client}'s evaluation has values that no evaluation gives")
    return told


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_number(value: object) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or (isinstance(value, int) and abs(value) < 2**53)
