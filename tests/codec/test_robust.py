"""Robust means: against their definition in torch, and against clients that lie."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_kernels import _C
from fgrpo_kernels.codec import Encoded, aggregate, decode, encode
from fgrpo_kernels.robust import clipped_mean, median, norms, trimmed_mean

FORMATS = [("int8", 32), ("int4", 64), ("int2", 1024), ("none", 64), ("int4", 256)]


def payloads(count: int, size: int, seed: int = 0) -> list[Encoded]:
    """Mixed codecs and blocks; sizes of values from 1e-6 to 1."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** -torch.linspace(0, 6, count)
    formats = [FORMATS[k % len(FORMATS)] for k in range(count)]
    return [
        encode(torch.randn(size, generator=generator) * scale, codec=codec, block=block)
        for scale, (codec, block) in zip(scales, formats, strict=True)
    ]


def stacked(encodeds: list[Encoded]) -> torch.Tensor:
    return torch.stack([decode(encoded) for encoded in encodeds])


def scaled(encoded: Encoded, factor: float) -> Encoded:
    return Encoded(encoded.codes, encoded.scales * factor, encoded.codec, encoded.block, encoded.size)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1023, 1025, 8193, 20000])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 64])
def test_trimmed_mean_is_the_mean_of_the_kept_values(simd: str, count: int, size: int) -> None:
    encodeds = payloads(count, size)
    ascending = stacked(encodeds).sort(0).values
    for trim in {0, 1 if count > 2 else 0, (count - 1) // 2}:
        kept = ascending[trim : count - trim]
        expected = kept[0].clone()
        for row in kept[1:]:
            expected += row
        assert torch.equal(trimmed_mean(encodeds, trim), expected / len(kept))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 64])
def test_median_is_the_middle(simd: str, count: int) -> None:
    encodeds = payloads(count, 3001)
    ascending = stacked(encodeds).sort(0).values
    expected = (ascending[(count - 1) // 2] + ascending[count // 2]) / 2
    assert torch.equal(median(encodeds), expected)


@settings(max_examples=40)
@given(st.integers(1, 64), st.integers(0, 3000), st.randoms(use_true_random=False), st.data())
def test_no_bit_depends_on_order_threads_or_instructions(count, size, random, data) -> None:
    encodeds = payloads(count, size, seed=count)
    trim = data.draw(st.integers(0, (count - 1) // 2))
    expected = trimmed_mean(encodeds, trim, num_threads=1).numpy().tobytes()
    random.shuffle(encodeds)
    previous = _C.use_simd(random.choice(_C.simd_levels()))
    try:
        assert trimmed_mean(encodeds, trim, num_threads=random.randint(1, 5)).numpy().tobytes() == expected
    finally:
        _C.use_simd(previous)


def test_negative_zero_has_its_place() -> None:
    zeros = [encode(torch.tensor([value]), codec="none") for value in (0.0, -0.0, -0.0)]
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        assert math.copysign(1, median([zeros[k] for k in order]).item()) == -1


@pytest.mark.parametrize("lie", [1e30, -1e30, -1.0], ids=["huge", "huge-negative", "sign-flipped"])
def test_liars_no_more_than_trim_stay_without_effect(lie: float) -> None:
    truth = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    honest = [encode(truth + 0.01 * torch.randn(5000), codec="int8") for _ in range(5)]
    everyone = [*honest, *(scaled(encoded, lie) for encoded in honest[:2])]
    low, high = stacked(honest).amin(0), stacked(honest).amax(0)
    for mean in (trimmed_mean(everyone, 2), median(everyone)):
        assert bool(((mean >= low) & (mean <= high)).all())
    assert float((aggregate(everyone, [1 / 7] * 7) - truth).norm() / truth.norm()) > 0.25


def test_norms_are_exact() -> None:
    encodeds = payloads(7, 300_001)
    exact = stacked(encodeds).double().square().sum(1).sqrt()
    torch.testing.assert_close(torch.tensor(norms(encodeds), dtype=torch.float64), exact, rtol=1e-14, atol=0)


def test_norms_do_not_depend_on_threads_or_instructions() -> None:
    encodeds = payloads(3, 200_003)
    outcomes, previous = set(), _C.use_simd(_C.simd_levels()[0])
    try:
        for level in _C.simd_levels():
            _C.use_simd(level)
            outcomes |= {norms(encodeds, num_threads=threads) for threads in (1, 2, 7)}
    finally:
        _C.use_simd(previous)
    assert len(outcomes) == 1


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_of_tiny_and_huge_deltas(scale: float) -> None:
    encoded = encode(torch.randn(1000) * scale, codec="int8")
    assert norms([encoded])[0] == pytest.approx(decode(encoded).double().norm().item(), rel=1e-14)


def test_clipped_mean_shortens_the_long_ones() -> None:
    encodeds = [encode(torch.randn(4000), codec="int8") for _ in range(3)] + [encode(torch.zeros(4000))]
    encodeds.append(scaled(encodeds[0], 2.0**20))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])
    clipped = clipped_mean(encodeds, weights, 70.0)
    assert clipped.norms == norms(encodeds)
    assert clipped.factors[:4] == (1.0,) * 4
    assert clipped.factors[4] == pytest.approx(70 / clipped.norms[4])
    deltas = stacked(encodeds).double() * torch.tensor(clipped.factors, dtype=torch.float64)[:, None]
    expected = (weights.double()[:, None] * deltas).sum(0)
    torch.testing.assert_close(clipped.mean.double(), expected, rtol=1e-5, atol=1e-6)
    assert deltas[4].norm() == pytest.approx(70)
    unclipped = clipped_mean(encodeds, weights, math.inf)
    assert unclipped.factors == (1.0,) * 5
    assert torch.equal(unclipped.mean, aggregate(encodeds, weights))


def test_out_is_written_and_returned() -> None:
    encodeds = payloads(5, 300)
    for function in (
        lambda out: trimmed_mean(encodeds, 1, out),
        lambda out: median(encodeds, out),
        lambda out: clipped_mean(encodeds, [0.2] * 5, 1.0, out).mean,
    ):
        out = torch.full((300,), math.nan)
        assert function(out) is out
        assert bool(out.isfinite().all())


BAD_SCALE = payloads(1, 100)[0]
BAD_SCALE.scales[2] = math.nan
FIVE = payloads(5, 100)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: trimmed_mean([], 0), ValueError, "trimmed_mean: no payloads", id="none"),
        pytest.param(lambda: median([]), ValueError, "no payloads; did every client fail", id="none-median"),
        pytest.param(lambda: norms([]), ValueError, "norms: no payloads", id="none-norms"),
        pytest.param(lambda: trimmed_mean(FIVE * 13, 1), ValueError, "65 payloads, at most 64", id="too-many"),
        pytest.param(lambda: trimmed_mean(FIVE, 3), ValueError, "leaves none of 5.*at most 2", id="trim"),
        pytest.param(lambda: trimmed_mean(FIVE, -1), ValueError, "must not be negative, got -1", id="trim-negative"),
        pytest.param(lambda: trimmed_mean(FIVE, 0.2), TypeError, "trim must be an int, got 0.2", id="trim-float"),
        pytest.param(lambda: median([*FIVE, 3]), TypeError, "payload 5 must be an Encoded, got int", id="type"),
        pytest.param(
            lambda: median([*FIVE, payloads(1, 99)[0]]),
            ValueError,
            "payload 5 has 99 parameters, payload 0 has 100; was it made from another model",
            id="size",
        ),
        pytest.param(lambda: median(FIVE, torch.empty(99)), ValueError, "out has 99 elements", id="out"),
        pytest.param(
            lambda: median([*FIVE, BAD_SCALE]), ValueError, "payload 5 has the value nan at index 64", id="nan-median"
        ),
        pytest.param(lambda: norms([BAD_SCALE]), ValueError, "norms: payload 0 has the value nan", id="nan-norms"),
        pytest.param(lambda: clipped_mean(FIVE, [1.0], 1.0), ValueError, "5 payloads but 1 weights", id="weights"),
        pytest.param(lambda: clipped_mean(FIVE, [1.0] * 5, 0.0), ValueError, "above 0, got 0.0", id="max-norm"),
        pytest.param(lambda: clipped_mean(FIVE, [1.0] * 5, math.nan), ValueError, "got nan", id="max-norm-nan"),
        pytest.param(
            lambda: clipped_mean([BAD_SCALE], [1.0], 1.0), ValueError, "payload 0 has the value nan", id="nan-clipped"
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


MEMORY = """
import torch
from fgrpo_kernels.codec import decode, encode
from fgrpo_kernels.robust import norms, trimmed_mean

def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

size = 1 << 22
one, out = encode(torch.ones(size)), torch.zeros(size)
trimmed_mean([one] * 3, 1, out)
start = peak()
trimmed_mean([one] * 64, 16, out)
norms([one] * 64)
ours = peak() - start
three = [decode(one) for _ in range(3)]
print(ours / (4 * size), (peak() - start) / (4 * size))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_clients() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    ours, three_decoded = map(float, done.stdout.split())  # in results of float32 [P]
    assert ours < 0.2
    assert three_decoded > 1.5, "the measure sees decoded copies"
