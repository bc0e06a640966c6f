"""The payload's container: what is packed comes back, and whatever is wrong is named."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fgrpo.errors import PayloadError
from fgrpo.wire.payload import Header, expect, pack, unpack
from fgrpo_kernels.codec import decode, encode

HEADER = Header("a", 3, "m" * 32, "b" * 32)
DELTA_P = torch.linspace(-1, 1, 1000)
FIXTURE = Path(__file__).parent / "fixtures" / "delta_v1.safetensors"


def packed(codec="int4"):
    return pack(encode(DELTA_P, codec=codec), HEADER)


def altered(payload, **changes):
    """The same tensors with other metadata; a checksum that no longer fits unless it is changed too."""
    (length,) = struct.unpack("<Q", payload[:8])
    header = json.loads(payload[8 : 8 + length])
    header["__metadata__"].update({name: str(value) for name, value in changes.items()})
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload[8 + length :]


@pytest.mark.parametrize("codec", ["int8", "int4", "none"])
def test_round_trip(codec):
    delta = encode(DELTA_P, codec=codec)
    header, back = unpack(pack(delta, HEADER))
    assert header == HEADER
    assert (back.codec, back.block, back.size) == (delta.codec, delta.block, delta.size)
    assert torch.equal(decode(back), decode(delta))
    expect(header, back, client="a", round_number=3, manifest="m" * 32, size=1000, base="b" * 32)


def test_int4_takes_less_than_a_seventh_of_float32():
    delta = encode(torch.randn(100_000), codec="int4", block=64)
    assert len(pack(delta, HEADER)) * 7 <= 4 * 100_000


def test_an_empty_delta_travels():
    assert unpack(pack(encode(torch.empty(0)), HEADER))[1].size == 0


def test_format_is_frozen():
    """Bytes of an earlier release must still be read; a change of format is a new version, never a new fixture."""
    header, delta = unpack(FIXTURE.read_bytes())
    assert header == HEADER
    assert torch.equal(decode(delta), decode(encode(DELTA_P, codec="int4")))
    assert len(packed()) == FIXTURE.stat().st_size


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        pytest.param(altered(packed(), version=2), "version '2'.*another release", id="version"),
        pytest.param(altered(packed(), round=4), "checksum", id="round-changed-in-transit"),
        pytest.param(save({"codes": torch.zeros(2, dtype=torch.uint8)}), r"\['codes'\], expected", id="missing-tensor"),
        pytest.param(
            save({"codes": torch.zeros(2), "scales": torch.zeros(1)}), "codes is F32.*expected U8", id="wrong-dtype"
        ),
        pytest.param(struct.pack("<Q", 1 << 40) + b"x" * 64, "not a safetensors file", id="huge-header"),
    ],
)
def test_a_wrong_payload_is_named(payload, message):
    with pytest.raises(PayloadError, match=message):
        unpack(payload)


def test_hostile_values_are_named():
    good = encode(DELTA_P, codec="int4")
    for scale in (float("nan"), float("inf"), -float("inf"), 3e38, -0.0):
        scales = good.scales.clone()
        scales[3] = scale
        with pytest.raises(PayloadError, match="scale"):
            unpack(pack(replace(good, scales=scales), HEADER))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"client": "b"}, "client is 'a', expected 'b'"),
        ({"round_number": 4}, "round is 3, expected 4"),
        ({"manifest": "x"}, "manifest.*another model"),
        ({"size": 999}, "size is 1000, expected 999"),
        ({"base": "x"}, "base.*another global model"),
    ],
)
def test_a_payload_for_something_else_is_named(change, message):
    header, delta = unpack(packed())
    wanted = {"client": "a", "round_number": 3, "manifest": "m" * 32, "size": 1000, "base": "b" * 32}
    with pytest.raises(PayloadError, match=message):
        expect(header, delta, **{**wanted, **change})
