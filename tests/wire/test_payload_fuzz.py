"""Whatever bytes come, `unpack` gives what was packed or a PayloadError that names the fault, in little memory."""

import json
import re
import tracemalloc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from payload_faults import DELTAS, FAULTS, GOOD, HEADER, PACKED, SCALES, joined, signed, split

from fgrpo.errors import PayloadError
from fgrpo.wire.payload import expect, pack, unpack
from fgrpo_kernels.codec import decode, encode


def refusal(payload: bytes) -> str | None:
    """The message of a refusal, which must be fit to be shown; None where the payload is accepted."""
    try:
        unpack(payload)
    except PayloadError as error:
        message = str(error)
    else:
        return None
    assert message.startswith("payload: ")
    assert message.isprintable()
    assert len(message) < 500
    return message


def accepted(payload: bytes, codec: str = "int4") -> bool:
    """Whether a payload is accepted; if so, it must hold what was packed."""
    if refusal(payload):
        return False
    header, delta = unpack(payload)
    packed = DELTAS[codec]
    assert header == HEADER
    assert (delta.codec, delta.block, delta.size) == (packed.codec, packed.block, packed.size)
    assert torch.equal(delta.codes, packed.codes)
    assert torch.equal(delta.scales.view(torch.uint8), packed.scales.view(torch.uint8))
    return True


@pytest.mark.parametrize(("payload", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_in_one_line(payload: bytes, message: str) -> None:
    said = refusal(payload)
    assert said
    assert re.search(message, said)


@pytest.mark.parametrize(
    "name",
    [
        "header-of-2^60-bytes",
        "shape-2^60",
        "shape-overflows",
        "offsets-2^63",
        "size-2^60",
        "size-2^60-of-none",
        "block-2^60",
        "size-2^80",
    ],
)
def test_declared_sizes_take_no_memory(name: str) -> None:
    payload, _ = FAULTS[name]
    tracemalloc.start()
    with pytest.raises(PayloadError):
        unpack(payload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000 + 4 * len(payload)


WANTED = {"client": "a", "round_number": 3, "manifest": "m" * 32, "size": 100, "base": "b" * 32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"client": "b"}, "client is 'b', expected 'a'", id="client"),
        pytest.param({"round": "2"}, "round is 2, expected 3", id="round"),
        pytest.param({"manifest": "x"}, "manifest is 'x'.*another model", id="manifest"),
        pytest.param({"base": "x"}, "base is 'x'.*another global model", id="base"),
        pytest.param({"size": "99"}, "size is 99, expected 100", id="size"),
        pytest.param({"client": "\x1b]" * 1000}, "client is", id="long-client"),
    ],
)
def test_a_sound_payload_for_something_else_is_named(changes: dict, message: str) -> None:
    delta = encode(torch.ones(int(changes.get("size", 100))), block=32)
    header, unpacked = unpack(signed(delta, **changes))
    with pytest.raises(PayloadError, match=message) as raised:
        expect(header, unpacked, **WANTED)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("codec", PACKED)
def test_every_truncation_is_refused(codec: str) -> None:
    payload = PACKED[codec]
    assert accepted(payload, codec)
    assert not any(accepted(payload[:length], codec) for length in range(len(payload)))


@pytest.mark.parametrize("codec", PACKED)
def test_every_bit_flip_is_refused(codec: str) -> None:
    """All of them: those in redundant bits, the padding's among them, are for the checksum to see."""
    payload = PACKED[codec]
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not accepted(bytes(flipped), codec), f"bit {bit}"


def test_the_checksum_sees_every_byte_of_the_tensors() -> None:
    header, data = split(GOOD)
    for index in range(len(data)):
        altered = bytearray(data)
        altered[index] ^= 0x01
        with pytest.raises(PayloadError, match="checksum"):
            unpack(joined(header, bytes(altered)))


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(payload: bytes) -> None:
    assert not accepted(payload)


EDITS = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 2), st.binary(max_size=4)), max_size=4)


@settings(max_examples=1000)
@given(EDITS)
def test_edited_bytes_are_refused_or_mean_the_accepted(edits: list[tuple[int, int, bytes]]) -> None:
    payload = GOOD
    for at, removed, inserted in edits:
        payload = payload[:at] + inserted + payload[at + removed :]
    accepted(payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
KEYS = st.sampled_from(["__metadata__", "codes", "scales", "x"])
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["U8", "BF16", "F64", "BOOL", "F4", "?"]),
        "shape": st.lists(st.integers(0, 70) | st.integers(0, 2**65), max_size=3),
        "data_offsets": st.lists(st.integers(0, 80) | st.integers(0, 2**65), min_size=2, max_size=2),
    },
)


@settings(max_examples=200)
@given(st.dictionaries(KEYS, JSON | TENSORS, max_size=4), st.binary(max_size=80))
def test_any_json_for_a_header_is_refused(header: dict, data: bytes) -> None:
    assert not accepted(joined(json.dumps(header).encode(), data))


@settings(max_examples=500)
@given(st.dictionaries(st.sampled_from([*json.loads(split(GOOD)[0])["__metadata__"], "x"]), st.text(max_size=30)))
def test_any_signed_metadata_are_refused_or_taken_at_their_word(changes: dict[str, str]) -> None:
    payload = signed(**changes)
    if refusal(payload):
        return
    header, delta = unpack(payload)
    expected = {"client": HEADER.client, "round": str(HEADER.round), "manifest": HEADER.manifest, "base": HEADER.base}
    for name, value in expected.items():
        assert str(getattr(header, name)) == changes.get(name, value)
    assert torch.equal(delta.codes, DELTAS["int4"].codes)


@settings(max_examples=300)
@given(st.sampled_from(["codes", "scales"]), st.integers(0, SCALES - 1), st.integers(0, 0xFFFF))
def test_forged_bytes_decode_to_finite_values_or_are_refused(field: str, index: int, bits: int) -> None:
    delta = DELTAS["int4"]
    tensor = getattr(delta, field).clone()
    if field == "codes":
        tensor[index] = bits & 0xFF
    else:
        tensor.view(torch.uint16)[index] = bits
    payload = pack(replace(delta, **{field: tensor}), HEADER)
    assert refusal(payload) or decode(unpack(payload)[1]).isfinite().all()
