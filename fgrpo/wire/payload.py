"""A compressed delta on the wire: a safetensors file whose metadata binds it to a model, a base, a round and a client.

Tensors: `codes` uint8 and `scales` bfloat16, as `fgrpo_kernels.codec.Encoded` describes them. Metadata, all text:
format, version, codec, block, size, manifest, base, round, client, checksum.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, cast

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from fgrpo.errors import PayloadError
from fgrpo_kernels.codec import Codec, Encoded, check_codes

FORMAT, VERSION = "fgrpo.delta", "1"
_MAX_HEADER_BYTES = 1 << 14
_MAX_MESSAGE = 400  # characters
_REPR = reprlib.Repr()
_REPR.maxstring = 80
_DTYPES = {"codes": ("U8", torch.uint8), "scales": ("BF16", torch.bfloat16)}


@dataclass(frozen=True)
class Header:
    """What a payload says of itself.

    Attributes:
        client: who made it.
        round: for which round.
        manifest: hash of the parameters' names and shapes (`Manifest.hash`).
        base: fingerprint of the global parameters that the delta starts from.
    """

    client: str
    round: int
    manifest: str
    base: str


def most_bytes(size: int) -> int:
    """Return more than a payload of so many parameters has, whatever its codec."""
    return 4 * size + _MAX_HEADER_BYTES + 64


def pack(delta: Encoded, header: Header) -> bytes:
    """Serialise a delta."""
    tensors = {"codes": delta.codes, "scales": delta.scales}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "codec": delta.codec,
        "block": str(delta.block),
        "size": str(delta.size),
        **{name: str(value) for name, value in asdict(header).items()},
    }
    return save(tensors, {**metadata, "checksum": _checksum(metadata, tensors)})


def unpack(payload: bytes) -> tuple[Header, Encoded]:
    """Parse and check a payload by itself: container, version, checksum, sizes, every scale and every code.

    Whatever the bytes are, memory is taken for those that came, never for what they declare.

    Raises:
        PayloadError: with the first thing that is wrong, in one short printable line.
    """
    metadata, tensors = _open(payload)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise _fault(
            f"format {_shown(metadata.get('format'))} version {_shown(metadata.get('version'))}, "
            f"expected {FORMAT!r} version {VERSION!r}; was it made by another release?"
        )
    checksum = metadata.pop("checksum", None)
    if checksum != _checksum(metadata, tensors):
        raise _fault("the checksum does not match its content; it was damaged or altered")
    try:
        header = Header(metadata["client"], _number(metadata, "round"), metadata["manifest"], metadata["base"])
        size, block = _number(metadata, "size"), _number(metadata, "block")
        codec = cast(Codec, metadata["codec"])  # whatever it is: Encoded looks
        delta = Encoded(tensors["codes"], tensors["scales"], codec, block, size)
        check_codes(delta)
    except KeyError as error:
        raise _fault(f"the metadata lack {error.args[0]!r}") from None
    except (ValueError, TypeError) as error:
        raise _fault(str(error)) from None
    return header, delta


def expect(
    header: Header, delta: Encoded, *, client: str, round_number: int, manifest: str, size: int, base: str
) -> None:
    """Raise PayloadError unless a payload is what the server is waiting for."""
    for what, got, wanted, cause in (
        ("client", header.client, client, "was the reply sent under another name?"),
        ("round", header.round, round_number, "did it arrive too late?"),
        ("manifest", header.manifest, manifest, "was it made from another model or another choice of parameters?"),
        ("size", delta.size, size, "was it made from another model?"),
        ("base", header.base, base, "did the client start from another global model?"),
    ):
        if got != wanted:
            raise _fault(f"{what} is {_shown(got)}, expected {_shown(wanted)}; {cause}")


def _open(payload: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Let safetensors check the container, then return its metadata and exactly the two tensors."""
    header_bytes = int.from_bytes(payload[:8], "little")
    if len(payload) < 8:
        raise _fault(f"not a safetensors file: {len(payload)} bytes")
    if header_bytes > _MAX_HEADER_BYTES:
        raise _fault(
            f"not a safetensors file of a delta: its header would have {header_bytes} bytes, of which "
            f"{_MAX_HEADER_BYTES} are allowed"
        )
    try:
        parts = dict(safetensors.deserialize(payload))
        # Of a key that comes twice, one parser may take the first value and another the last: neither is taken.
        metadata = json.loads(payload[8 : 8 + header_bytes], object_pairs_hook=_unique).get("__metadata__") or {}
    except PayloadError:
        raise
    except Exception as error:  # SafetensorError, and whatever a later version raises for bytes it cannot read
        raise _fault(f"not a valid safetensors file: {error}") from None
    if parts.keys() != _DTYPES.keys():
        raise _fault(f"it holds the tensors {_shown(sorted(parts))}, expected {sorted(_DTYPES)}")
    tensors = {}
    for name, (wire_dtype, dtype) in _DTYPES.items():
        part = parts[name]
        if part["dtype"] != wire_dtype or len(part["shape"]) != 1:
            raise _fault(f"{name} is {part['dtype']} {_shown(part['shape'])}, expected {wire_dtype} in one dimension")
        data = bytearray(part["data"])
        tensors[name] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return metadata, tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise _fault(f"its header has {_shown(key)} twice")
        unique[key] = value
    return unique


def _number(metadata: Mapping[str, str], name: str) -> int:
    """A number as `pack` writes it, and small enough for the codec's 64 bits."""
    text = metadata[name]
    if not re.fullmatch("0|[1-9][0-9]{0,18}", text):
        raise _fault(f"{name} is {_shown(text)}, expected a whole number below 10**19 in plain digits")
    return int(text)


def _shown(value: object) -> str:
    """A value for a message, shortened: a client chose it."""
    return _REPR.repr(value)


def _fault(what: str) -> PayloadError:
    """The error for a faulty payload: one line of printable ASCII, whatever stands in `what`."""
    line = re.sub(r"[^ -~]", lambda match: ascii(match[0])[1:-1], f"payload: {what}")
    return PayloadError(line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + "...")


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = blake2b(json.dumps(sorted(metadata.items())).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(tensors[name].view(torch.uint8).numpy().data)
    return digest.hexdigest()
