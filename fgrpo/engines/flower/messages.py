"""What crosses between the server and a node, as the records of Flower's messages.

Text is JSON in one record; bytes are arrays of a type of our own, which nothing of Flower's takes for numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fgrpo.errors import PayloadError
from fgrpo.records import ClientData, Evaluation, Failure, Reply, Report
from fgrpo.wire.answers import from_text, printable, to_text
from fgrpo.wire.shipment import Shipment

Result = Reply | Failure | Evaluation | ClientData
_VERSION = 1
_SERIALISED = "fgrpo.bytes.v1"


@dataclass(frozen=True)
class Ask:
    """What the server wants of a node.

    Attributes:
        task: `describe` asks who its clients are; `train` and `evaluate` are for these clients.
        experiment: names a run, and whatever continues it.
        round: the round to train for, or the one that gave the model to evaluate.
        heard: by client, the last round whose reply the server took; its residual is the one to go on from.
        shipment: the model; None with `describe`.
    """

    task: Literal["describe", "train", "evaluate"]
    experiment: str
    round: int = 0
    clients: tuple[str, ...] = ()
    heard: Mapping[str, int] = field(default_factory=dict)
    shipment: Shipment | None = None

    def pack(self) -> RecordDict:
        shipment = self.shipment
        text = {
            "version": _VERSION,
            "task": self.task,
            "experiment": self.experiment,
            "round": self.round,
            "clients": self.clients,
            "heard": dict(self.heard),
            "model": None if shipment is None else {"kind": shipment.kind, "model": shipment.model},
        }
        parts = () if shipment is None else shipment.parts
        return _pack(json.dumps(text), {str(number): part for number, part in enumerate(parts)})

    @staticmethod
    def unpack(content: RecordDict) -> Ask:
        """Read what a server sent, which is trusted to be one; of another release it says so.

        Raises:
            PayloadError: it cannot be read.
        """
        text, parts = _unpack(content)
        try:
            fields = json.loads(text)
            if fields.pop("version") != _VERSION:
                raise PayloadError("message: of another release of fgrpo; install the same on server and nodes")
            model = fields.pop("model")
            shipment = None if model is None else Shipment(**model, parts=tuple(parts[key] for key in sorted(parts)))
            return Ask(**{**fields, "clients": tuple(fields["clients"])}, shipment=shipment)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PayloadError(f"message: not one of an fgrpo server: {printable(error)}") from None


@dataclass(frozen=True)
class Answer:
    """What a node replies.

    Attributes:
        results: one or more a client; of `train` replies, whose payloads travel as bytes.
        held: fingerprint of the model that the node has now; empty if none.
        lacks: the node cannot do with what was shipped and needs the whole model.
    """

    results: tuple[Result, ...] = ()
    held: str = ""
    lacks: bool = False

    def pack(self) -> RecordDict:
        told = to_text(result.report if isinstance(result, Reply) else result for result in self.results)
        text = json.dumps({"version": _VERSION, "held": self.held, "lacks": self.lacks, "told": told})
        return _pack(text, {result.client: result.payload for result in self.results if isinstance(result, Reply)})

    @staticmethod
    def unpack(content: RecordDict, most_bytes: int) -> Answer:
        """Read what anybody may have sent.

        Args:
            most_bytes: of one client's payload; a longer one makes a failure of that client's reply.

        Raises:
            PayloadError: in one line, if there is nothing to be read of it.
        """
        text, payloads = _unpack(content)
        try:
            fields = json.loads(text)
            version, held, lacks, told = (fields[key] for key in ("version", "held", "lacks", "told"))
        except (KeyError, TypeError, ValueError, RecursionError):
            raise PayloadError("answer: not one of an fgrpo node") from None
        if version != _VERSION or not isinstance(held, str) or not isinstance(lacks, bool):
            raise PayloadError("answer: of another release of fgrpo; install the same on server and nodes")
        results: list[Result] = []
        for one in from_text(told):
            results.append(_with_payload(one, payloads, most_bytes) if isinstance(one, Report) else one)
        return Answer(tuple(results), held, lacks)


def _with_payload(report: Report, payloads: Mapping[str, bytes], most_bytes: int) -> Reply | Failure:
    payload = payloads.get(report.client)
    if payload is None:
        return Failure(report.client, "payload: none came with the report")
    if len(payload) > most_bytes:
        return Failure(report.client, f"payload: {len(payload)} bytes, expected at most {most_bytes}")
    return Reply(report.client, report, payload)


def _pack(text: str, parts: Mapping[str, bytes]) -> RecordDict:
    arrays = {name: Array("uint8", (len(data),), _SERIALISED, data) for name, data in parts.items()}
    return RecordDict({"text": ConfigRecord({"json": text}), "bytes": ArrayRecord(arrays)})


def _unpack(content: RecordDict) -> tuple[str, dict[str, bytes]]:
    text, arrays = content.config_records.get("text"), content.array_records.get("bytes")
    if text is None or arrays is None or not isinstance(text.get("json"), str):
        raise PayloadError("message: it has no text and bytes of fgrpo")
    return text["json"], {name: array.data for name, array in arrays.items() if array.stype == _SERIALISED}  # type: ignore[return-value]
