"""Lossless updates: every bit comes back, and damaged or hostile bytes are refused."""

import itertools
import struct

import pytest
import torch
import update_specification
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_kernels import _C
from fgrpo_kernels.downlink import SparseUpdate, apply_update, encode_update

SIZES = [0, 1, 255, 256, 257, 16383, 16384, 16385, 50_001]
DENSITIES = [0.0, 1e-4, 1e-2, 0.3, 1.0]


def patterns(size: int, seed: int = 0) -> torch.Tensor:
    """Every kind of bfloat16: NaN payloads, infinities, both zeros, subnormals."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**15), 2**15, (size,), generator=generator, dtype=torch.int16).view(torch.bfloat16)


def changed(base: torch.Tensor, density: float, farthest: int, seed: int = 1) -> torch.Tensor:
    """A copy with about `density` of the patterns moved by up to `farthest`, in either direction."""
    generator = torch.Generator().manual_seed(seed)
    moved = torch.rand(len(base), generator=generator) < density
    distance = torch.randint(1, farthest + 1, (len(base),), generator=generator)
    sign = 2 * torch.randint(0, 2, (len(base),), generator=generator) - 1
    pattern = base.view(torch.int16).int() + torch.where(moved, sign * distance, 0)
    return pattern.to(torch.int16).view(torch.bfloat16)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("size", SIZES)
def test_round_trip(simd: str, size: int, density: float) -> None:
    base = patterns(size)
    for farthest in (1, 300, 32767):
        new = changed(base, density, farthest)
        update = encode_update(new, base)
        assert update.nbytes <= 2 * size + 3 * -(-size // 16384) + 40
        assert same_bits(apply_update(base, update), new)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), max_size=600), st.integers(1, 40))
def test_round_trip_of_any_patterns(pairs, every) -> None:
    base = torch.tensor([b for b, _ in pairs], dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    new = torch.tensor([n if i % every == 0 else b for i, (b, n) in enumerate(pairs)], dtype=torch.int32)
    new = new.to(torch.int16).view(torch.bfloat16)
    assert same_bits(apply_update(base, encode_update(new, base)), new)


@pytest.mark.parametrize("steps", [-1, 1, 2, 255, 256, 16384, 32767, -32768])
def test_every_pattern_moves_by_every_kind_of_step(steps: int) -> None:
    base = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    new = base.view(torch.int16).roll(steps).view(torch.bfloat16)
    assert same_bits(apply_update(base, encode_update(new, base)), new)


def test_bytes_do_not_depend_on_threads_or_instructions() -> None:
    base = patterns(200_001)
    new = changed(base, 0.02, 3)
    outcomes, previous = set(), _C.use_simd(_C.simd_levels()[0])
    try:
        for level, threads in itertools.product(_C.simd_levels(), (1, 2, 7)):
            _C.use_simd(level)
            update = encode_update(new, base, num_threads=threads)
            outcomes.add(update.data)
            assert same_bits(apply_update(base, update, num_threads=threads), new)
    finally:
        _C.use_simd(previous)
    assert len(outcomes) == 1


@pytest.mark.parametrize(
    ("density", "bits_a_change"),
    [pytest.param(1e-2, 11, id="1%"), pytest.param(3e-2, 9.2, id="3%"), pytest.param(0.3, 5.6, id="30%"), (1.0, 3.1)],
)
def test_a_change_by_one_place_costs_about_a_byte(density: float, bits_a_change: float) -> None:
    base = patterns(1_000_000)
    new = changed(base, density, 1)
    changes = int((new.view(torch.int16) != base.view(torch.int16)).sum())
    assert 8 * encode_update(new, base).nbytes / changes < bits_a_change


def test_nothing_changed_costs_almost_nothing() -> None:
    base = patterns(1_000_000)
    assert encode_update(base, base).nbytes == 40 + 2 * 62


def test_in_place_and_into_out() -> None:
    base, copy = patterns(40_000), patterns(40_000)
    new = changed(base, 0.1, 5)
    update = encode_update(new, base)
    out = torch.empty_like(base)
    assert apply_update(base, update, out) is out
    assert same_bits(base, copy)
    assert apply_update(base, update, out=base) is base
    assert same_bits(out, new)
    assert same_bits(base, new)


def test_chain_of_updates() -> None:
    held = model = patterns(30_000)
    for step in range(5):
        previous, model = model, changed(model, 0.05, 2, seed=step)
        held = apply_update(held, encode_update(model, previous))
    assert same_bits(held, model)


GOOD_BASE = patterns(40_000)
GOOD = encode_update(
    torch.cat([changed(GOOD_BASE[:16384], 0.01, 3), changed(GOOD_BASE[16384:], 0.6, 1)]), GOOD_BASE
).data


def refused(data: bytes, message: str = "apply_update") -> None:
    """The update is refused, and a base that would change in place is as it was."""
    target = GOOD_BASE.clone()
    with pytest.raises(ValueError, match=message):
        apply_update(target, SparseUpdate(data), out=target)
    assert same_bits(target, GOOD_BASE)


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_refused(at: int, bit: int) -> None:
    refused(GOOD[:at] + bytes([GOOD[at] ^ 1 << bit]) + GOOD[at + 1 :])


def test_every_flipped_bit_of_the_head_is_refused() -> None:
    for at, bit in itertools.product(range(80), range(8)):
        refused(GOOD[:at] + bytes([GOOD[at] ^ 1 << bit]) + GOOD[at + 1 :])


@settings(max_examples=200)
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3))
def test_cut_or_continued_bytes_are_refused(length: int, more: bytes) -> None:
    refused(GOOD[:length])
    if more:
        refused(GOOD + more)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=80), st.integers(0, 3))
def test_rubbish_in_a_block_is_refused(rubbish: bytes, form: int) -> None:
    base = GOOD_BASE[:100].clone()
    header = encode_update(base, base).data[:24] + bytes(8)  # the right base, and a result that nobody has
    block = bytes([form]) + rubbish
    data = header + struct.pack("<H", len(block)) + block + bytes(8)
    with pytest.raises(ValueError, match="apply_update"):
        apply_update(base, SparseUpdate(data))


def test_faults_are_named() -> None:
    refused(GOOD[:20], "20 bytes are too few")
    refused(b"PK" + GOOD[2:], "not an update")
    refused(GOOD[:4] + b"\2" + GOOD[5:], "version 2, expected 1")
    refused(GOOD[:-9], "was it cut")
    refused(GOOD[:-1] + b"\1", "last 8 bytes are not 0")
    with pytest.raises(ValueError, match=r"the update was made for another base.*is a round missing"):
        apply_update(changed(GOOD_BASE, 1e-3, 1), SparseUpdate(GOOD))
    with pytest.raises(ValueError, match=r"of 40000 values, the base has 39999; are they the same model"):
        apply_update(GOOD_BASE[1:], SparseUpdate(GOOD))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda: encode_update(torch.ones(3), torch.ones(3)),
            TypeError,
            "encode_update: new must be bfloat16, got float32",
            id="dtype",
        ),
        pytest.param(
            lambda: encode_update(GOOD_BASE, GOOD_BASE[1:]),
            ValueError,
            "base has 39999 values, new has 40000",
            id="size",
        ),
        pytest.param(lambda: encode_update(GOOD_BASE.view(200, 200), GOOD_BASE), ValueError, "1-D", id="shape"),
        pytest.param(lambda: apply_update(GOOD_BASE, GOOD), TypeError, "must be a SparseUpdate, got bytes", id="bytes"),
        pytest.param(
            lambda: apply_update(GOOD_BASE, SparseUpdate(GOOD), GOOD_BASE[1:].clone()),
            ValueError,
            "out has 39999 values, the base 40000",
            id="out",
        ),
        pytest.param(
            lambda: apply_update(patterns(5)[:4], encode_update(patterns(4), patterns(4)), patterns(4).float()),
            TypeError,
            "out must be bfloat16",
            id="out-dtype",
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_out_may_not_overlap_base_in_part() -> None:
    memory = patterns(40_001)
    base = memory[:-1]
    update = encode_update(changed(base, 0.1, 1), base)
    with pytest.raises(ValueError, match="shares memory"):
        apply_update(base, update, memory[1:])


@pytest.mark.parametrize("density", [1e-3, 0.05, 0.6])
@pytest.mark.parametrize("farthest", [1, 32767])
def test_bytes_mean_what_the_header_file_says(density: float, farthest: int) -> None:
    """A reader in plain Python, written from csrc/sparse_delta.h, comes to the same model and hashes."""
    base = patterns(17_000)
    new = changed(base, density, farthest)
    result = update_specification.read(encode_update(new, base).data, base.view(torch.int16).tolist())
    assert result == [pattern & 0xFFFF for pattern in new.view(torch.int16).tolist()]


FROZEN = (
    "46475355010000002c010000000000000f95b93abbe64a9e314035438bb5e4be"  # FGSU, 1, 300 values, two hashes
    "0c00"  # one block of 12 bytes
    "00010200cc09500e00680f00"  # a list, gap order 1, step order 0, three values
    "0000000000000000"
)


def test_frozen_bytes() -> None:
    """The format may not drift: updates travel between versions."""
    base = torch.arange(0x3F80, 0x3F80 + 300).to(torch.int16).view(torch.bfloat16)
    pattern = base.view(torch.int16).clone()
    pattern[7] += 1
    pattern[9] -= 2
    pattern[250] = -0x8000
    data = encode_update(pattern.view(torch.bfloat16), base).data
    assert data.hex() == FROZEN
    assert same_bits(apply_update(base, SparseUpdate(bytes.fromhex(FROZEN))), pattern.view(torch.bfloat16))
