"""Payloads with one fault each, and what `unpack` must say of it."""

import json
import struct
from dataclasses import replace

import torch

from fgrpo.wire.payload import Header, _checksum, pack
from fgrpo_kernels.codec import CODECS, Encoded, encode

HEADER = Header("a", 3, "m" * 32, "b" * 32)
DELTAS = {codec: encode(torch.linspace(-1, 1, 100), codec=codec, block=32) for codec in CODECS}
PACKED = {codec: pack(delta, HEADER) for codec, delta in DELTAS.items()}
GOOD = PACKED["int4"]


def split(payload: bytes) -> tuple[bytes, bytes]:
    """The header's text and the tensors' bytes."""
    (length,) = struct.unpack("<Q", payload[:8])
    return payload[8 : 8 + length], payload[8 + length :]


def joined(header: bytes, data: bytes = split(GOOD)[1]) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def with_header(old: str, new: str) -> bytes:
    """The payload with its header's text changed, as somebody on the way might."""
    text = split(GOOD)[0].decode()
    assert text.count(old) == 1
    return joined(text.replace(old, new).encode())


def signed(delta: Encoded = DELTAS["int4"], **changes: str | None) -> bytes:
    """A payload by somebody who knows the format: other metadata (None: left out) and a checksum that fits them."""
    text, data = split(pack(delta, HEADER))
    header = json.loads(text)
    metadata = {**header["__metadata__"], **changes}
    metadata = {name: value for name, value in metadata.items() if value is not None and name != "checksum"}
    metadata["checksum"] = _checksum(metadata, {"codes": delta.codes, "scales": delta.scales})
    return joined(json.dumps({**header, "__metadata__": metadata}).encode(), data)


def forged(field: str, index: int, value: float) -> bytes:
    """A payload whose checksum fits one hostile code or scale."""
    delta = DELTAS["int4"]
    tensor = getattr(delta, field).clone()
    tensor[index] = value
    return pack(replace(delta, **{field: tensor}), HEADER)


def with_tensors(tensors: dict, data: bytes = split(GOOD)[1]) -> bytes:
    """Other declarations of tensors above the same bytes."""
    header = json.loads(split(GOOD)[0])
    return joined(json.dumps({"__metadata__": header["__metadata__"], **tensors}).encode(), data)


CODES, SCALES = DELTAS["int4"].codes.numel(), DELTAS["int4"].scales.numel()


def declared(codes: dict | None = None, scales: dict | None = None) -> bytes:
    """Tensors as `pack` declares them, but for the changes."""
    middle, end = 2 * SCALES, 2 * SCALES + CODES
    return with_tensors(
        {
            "scales": {"dtype": "BF16", "shape": [SCALES], "data_offsets": [0, middle], **(scales or {})},
            "codes": {"dtype": "U8", "shape": [CODES], "data_offsets": [middle, end], **(codes or {})},
        }
    )


OVERFLOWING = replace(
    DELTAS["int2"],
    codes=torch.tensor([2] + [0] * (DELTAS["int2"].codes.numel() - 1), dtype=torch.uint8),
    scales=torch.full_like(DELTAS["int2"].scales, 2.0**127),
)
NO_CODES = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
NOT_A_FILE = "not a (valid )?safetensors file"
FAULTS = {
    # the container
    "nothing": (b"", "not a safetensors file: 0 bytes"),
    "seven-bytes": (GOOD[:7], "not a safetensors file: 7 bytes"),
    "header-of-2^60-bytes": (struct.pack("<Q", 2**60) + GOOD[8:], "header would have 1152921504606846976 bytes"),
    "header-of-2^64-bytes": (b"\xff" * 8 + GOOD[8:], "header would have 18446744073709551615 bytes"),
    "header-longer-than-file": (struct.pack("<Q", len(GOOD)) + GOOD[8:], "invalid header length"),
    "header-of-nothing": (joined(b""), NOT_A_FILE),
    "not-json": (joined(b"hello"), NOT_A_FILE),
    "not-utf-8": (with_header('"a"', '"a"').replace(b'"a"', b'"\xff"'), "UTF-8"),
    "utf-16": (joined(split(GOOD)[0].decode().encode("utf-16")), NOT_A_FILE),
    "lone-surrogate": (with_header('"a"', r'"\ud800"'), NOT_A_FILE),
    "nested-lists": (joined(b"[" * 16000), NOT_A_FILE),
    "nested-maps": (joined(b'{"a":' * 3000), NOT_A_FILE),
    "a-list": (joined(b"[]"), NOT_A_FILE),
    "no-metadata": (joined(b'{"a":%s}' % NO_CODES.encode(), b""), r"the tensors \['a'\]"),
    "metadata-are-a-number": (joined(b'{"__metadata__":1}', b""), NOT_A_FILE),
    "metadata-hold-a-map": (with_header('"round":"3"', '"round":{"a":"3"}'), NOT_A_FILE),
    "bytes-left-over": (GOOD + b"\0", NOT_A_FILE),
    # the same key twice: which one counts would depend on the reader
    "round-twice": (with_header('"round":"3"', '"round":"4","round":"3"'), "'round' twice"),
    "codes-twice": (
        with_header('"codes":{', '"codes":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"codes":{'),
        "twice",
    ),
    "metadata-twice": (with_header('{"__metadata__":{', '{"__metadata__":{},"__metadata__":{'), NOT_A_FILE),
    # the tensors
    "tensor-missing": (
        with_tensors({"codes": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        "expected",
    ),
    "tensor-too-many": (
        with_tensors({n: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in ("codes", "scales", "x")}, b""),
        "'x'",
    ),
    "shape-2^60": (declared(codes={"shape": [2**60]}), NOT_A_FILE),
    "shape-overflows": (declared(codes={"shape": [2**32, 2**32, 2**32]}), NOT_A_FILE),
    "shape-2^70": (declared(codes={"shape": [2**70]}), NOT_A_FILE),
    "shape-negative": (declared(codes={"shape": [-1]}), NOT_A_FILE),
    "shape-in-two-dimensions": (declared(codes={"shape": [2, CODES // 2]}), "in one dimension"),
    "dtype-of-codes": (declared(codes={"dtype": "I8"}), "codes is I8.*expected U8"),
    "dtype-of-scales": (declared(scales={"dtype": "F16"}), "scales is F16.*expected BF16"),
    "dtype-unknown": (declared(codes={"dtype": "U9"}), NOT_A_FILE),
    "offsets-overlap": (declared(codes={"data_offsets": [0, CODES]}), NOT_A_FILE),
    "offsets-backwards": (declared(codes={"data_offsets": [2 * SCALES + CODES, 2 * SCALES]}), NOT_A_FILE),
    "offsets-2^63": (declared(codes={"data_offsets": [2 * SCALES, 2**63]}), NOT_A_FILE),
    # what the metadata say, altered on the way
    "round-altered": (with_header('"round":"3"', '"round":"4"'), "checksum"),
    "client-altered": (with_header('"client":"a"', '"client":"c"'), "checksum"),
    "checksum-altered": (with_header('"checksum":"', '"checksum":"0'), "checksum"),
    "checksum-missing": (with_header('"checksum"', '"sum"'), "checksum"),
    # what the metadata say, with a checksum that fits
    "format": (signed(format="other"), "format 'other'.*expected 'fgrpo.delta'"),
    "version": (signed(version="2"), "version '2'.*another release"),
    "codec-unknown": (signed(codec="int3"), "codec must be one of.*'int3'"),
    "codec-other": (signed(codec="int8"), "codes has 64 elements.*int8"),
    "codec-none": (signed(codec="none"), "codes has 64 elements.*none"),
    "codec-missing": (signed(codec=None), "lack 'codec'"),
    "client-missing": (signed(client=None), "lack 'client'"),
    "block-0": (signed(block="0"), "block must be a power of two"),
    "block-48": (signed(block="48"), "block must be a power of two.*48"),
    "block-2^60": (signed(block=str(2**60)), "block must be a power of two"),
    "block-other": (signed(block="64"), "scales has 4 elements"),
    "size-one-more": (signed(size="129"), "need 80"),
    "size-2^60": (signed(size=str(2**60)), "1152921504606846976 parameters"),
    # times the bits of a value, these are 0 modulo 2^64: no codes would do
    "size-2^60-of-none": (signed(encode(torch.empty(0), codec="none"), size=str(2**60)), "need 4611686018427387904"),
    "size-2^60-of-bf16": (signed(encode(torch.empty(0), codec="bf16"), size=str(2**60)), "need 2305843009213693952"),
    "size-2^63": (signed(size=str(2**63)), "more than memory can hold"),
    "size-2^80": (signed(size=str(2**80)), "size is '1208925819614629174706176'"),
    "size-of-5000-digits": (signed(size="9" * 5000), "size is '9"),
    "size-negative": (signed(size="-1"), "size is '-1'"),
    "size-float": (signed(size="1e2"), "size is '1e2'"),
    "size-with-blanks": (signed(size=" 100"), "size is ' 100'"),
    "size-with-underscore": (signed(size="1_00"), "size is '1_00'"),
    "size-in-other-digits": (signed(size="१००"), "size is"),
    "size-empty": (signed(size=""), "size is ''"),
    "round-negative": (signed(round="-3"), "round is '-3'"),
    "round-is-text": (signed(round="x"), "round is 'x'"),
    # what the codec never writes
    "scale-nan": (forged("scales", 1, float("nan")), "scale 1 is nan"),
    "scale-inf": (forged("scales", 2, float("inf")), "scale 2 is inf"),
    "scale-negative": (forged("scales", 0, -1.0), "scale 0 is -1.*only in a block with the code -8"),
    "scale-minus-inf": (forged("scales", 0, float("-inf")), "scale 0 is -inf"),
    "scale-minus-0": (forged("scales", 0, -0.0), "scale 0 is -0"),
    "scale-subnormal": (forged("scales", 0, 1e-39), "subnormal"),
    "scale-too-large": (forged("scales", 0, 2.0**126), "scale 0 is"),
    "product-int2": (pack(OVERFLOWING, HEADER), "index 0, code -2 times scale 1.7"),
    "padding": (forged("codes", -1, 0x10), "padding code 127 is 1"),
    "value-nan": (pack(replace(DELTAS["none"], codes=torch.full_like(DELTAS["none"].codes, 0xFF)), HEADER), "index 0"),
    # text that a client chose
    "long-codec": (signed(codec="x" * 10000), "codec must be one of"),
    "control-characters": (signed(codec="\x1b[31m\n\u202e"), "codec must be one of"),
}
