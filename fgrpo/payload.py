"""A compressed delta on the wire: a safetensors file whose metadata binds it to a model, a base, a round and a client.

Tensors: `codes` uint8 and `scales` bfloat16, as `fgrpo_kernels.codec.Encoded` describes them. Metadata, all text:
format, version, codec, block, size, manifest, base, round, client, checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from fgrpo.errors import PayloadError
from fgrpo_kernels.codec import Encoded, check_codes

FORMAT, VERSION = "fgrpo.delta", "1"
_MAX_HEADER_BYTES = 1 << 14
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

    Raises:
        PayloadError: with the first thing that is wrong.
    """
    metadata, tensors = _open(payload)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise PayloadError(
            f"payload: format {metadata.get('format')!r} version {metadata.get('version')!r}, "
            f"expected {FORMAT!r} version {VERSION!r}; was it made by another release?"
        )
    checksum = metadata.pop("checksum", None)
    if checksum != _checksum(metadata, tensors):
        raise PayloadError("payload: the checksum does not match its content; it was damaged or altered")
    try:
        header = Header(metadata["client"], int(metadata["round"]), metadata["manifest"], metadata["base"])
        size, block = int(metadata["size"]), int(metadata["block"])
        delta = Encoded(tensors["codes"], tensors["scales"], metadata["codec"], block, size)
        check_codes(delta)
    except KeyError as error:
        raise PayloadError(f"payload: the metadata lack {error.args[0]!r}") from None
    except (ValueError, TypeError) as error:
        raise PayloadError(f"payload: {error}") from None
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
            raise PayloadError(f"payload: {what} is {got!r}, expected {wanted!r}; {cause}")


def _open(payload: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Let safetensors check the container, then return its metadata and exactly the two tensors."""
    header_bytes = int.from_bytes(payload[:8], "little")
    if len(payload) < 8 or header_bytes > _MAX_HEADER_BYTES:
        raise PayloadError(f"payload: not a safetensors file of a delta ({len(payload)} bytes)")
    try:
        parts = dict(safetensors.deserialize(payload))
    except Exception as error:  # SafetensorError, and whatever a later version raises for bytes it cannot read
        raise PayloadError(f"payload: not a valid safetensors file: {error}") from None
    if parts.keys() != _DTYPES.keys():
        raise PayloadError(f"payload: it holds the tensors {sorted(parts)}, expected {sorted(_DTYPES)}")
    tensors = {}
    for name, (wire_dtype, dtype) in _DTYPES.items():
        part = parts[name]
        if part["dtype"] != wire_dtype or len(part["shape"]) != 1:
            raise PayloadError(
                f"payload: {name} is {part['dtype']} {part['shape']}, expected {wire_dtype} in one dimension"
            )
        data = bytearray(part["data"])
        tensors[name] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    metadata = json.loads(payload[8 : 8 + header_bytes]).get("__metadata__") or {}
    return metadata, tensors


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = blake2b(json.dumps(sorted(metadata.items())).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(tensors[name].view(torch.uint8).numpy().data)
    return digest.hexdigest()
