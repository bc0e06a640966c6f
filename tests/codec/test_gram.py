"""The deltas' inner products: against those of the decoded deltas, and the same bits whatever else there is."""

import math
import subprocess
import sys

import pytest
import specification
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_kernels import _C
from fgrpo_kernels.codec import Encoded, aggregate, decode, encode, gram
from fgrpo_kernels.robust import norms

BLOCKS = (32, 64, 1024)


def payloads(count: int, size: int, codecs: list[str] = specification.CODECS, blocks=BLOCKS) -> list[Encoded]:
    """Magnitudes from 1e-30 to 1e30; both scales, so that the lowest codes occur too."""
    generator = torch.Generator().manual_seed(count * size)
    exponents = torch.linspace(-30, 30, count)[torch.randperm(count, generator=generator)]
    return [
        encode(
            torch.randn(size, generator=generator) * 10**exponent,
            codec=codecs[k % len(codecs)],
            block=blocks[k // 2 % len(blocks)],
            scale=("absmax", "mse")[k % 2],
        )
        for k, exponent in enumerate(exponents.tolist())
    ]


def stacked(encodeds: list[Encoded]) -> torch.Tensor:
    return torch.stack([decode(encoded) for encoded in encodeds]).double()


def require_products(products: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
    """To 1e-14 of the norms: products that cancel have no digits of their own."""
    expected = (rows[:, None] * columns[None]).sum(-1)
    bound = 1e-14 * rows.norm(dim=1)[:, None] * columns.norm(dim=1)[None]
    assert products.dtype == torch.float64
    assert products.shape == expected.shape
    assert bool(((products - expected).abs() <= bound).all())


@pytest.mark.parametrize("size", [1, 31, 65, 1023, 1025, 5000])
@pytest.mark.parametrize("codecs", [["int8"], ["int4"], ["int2"], ["bf16"], ["none"], specification.CODECS])
def test_products_of_the_decoded(simd: str, codecs: list[str], size: int) -> None:
    for count in (1, 2, 33):
        blocks = BLOCKS if len(codecs) > 1 else (64,)
        encodeds = payloads(count, size, codecs, blocks)
        products, decoded = gram(encodeds), stacked(encodeds)
        require_products(products, decoded, decoded)
        assert torch.equal(products, products.T)
        require_products(gram(encodeds, encodeds[::-2]), decoded, decoded.flip(0)[::2])


@settings(max_examples=60)
@given(st.data(), st.integers(1, 40), st.integers(0, 3000), st.integers(1, 5))
def test_an_entry_depends_on_its_two_payloads_alone(data, count, size, threads) -> None:
    encodeds = payloads(count, size)
    expected = gram(encodeds, num_threads=1)
    rows = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    columns = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=50))
    previous = _C.use_simd(data.draw(st.sampled_from(_C.simd_levels())))
    try:
        products = gram([encodeds[k] for k in rows], [encodeds[m] for m in columns], num_threads=threads)
        assert torch.equal(products, expected[rows][:, columns])
        diagonal = expected.diagonal().tolist()
        assert norms(encodeds, num_threads=threads) == tuple(math.sqrt(square) for square in diagonal)
    finally:
        _C.use_simd(previous)


def test_several_parts_give_the_same_bits_everywhere() -> None:
    encodeds = payloads(9, 400_003)
    outcomes, previous = set(), _C.use_simd(_C.simd_levels()[0])
    try:
        for level in _C.simd_levels():
            _C.use_simd(level)
            outcomes |= {gram(encodeds, num_threads=threads).numpy().tobytes() for threads in (1, 2, 7)}
    finally:
        _C.use_simd(previous)
    assert len(outcomes) == 1
    require_products(gram(encodeds), stacked(encodeds), stacked(encodeds))


def test_a_thousand_clients() -> None:
    """More than fit in a tile, in the rows as in the columns, of three kinds."""
    encodeds = payloads(999, 70, ["int8", "none", "int4"], (64, 32))
    decoded = stacked(encodeds)
    products, expected = gram(encodeds), decoded @ decoded.T
    assert bool(((products - expected).abs() <= 1e-13 * decoded.norm(dim=1).outer(decoded.norm(dim=1))).all())


def test_zeros_and_nothing() -> None:
    encodeds = [encode(torch.zeros(100)), *payloads(3, 100)]
    assert gram(encodeds)[0].tolist() == [0.0] * 4
    assert gram([encode(torch.empty(0))] * 2).tolist() == [[0.0] * 2] * 2


def test_padding_does_not_count() -> None:
    encoded = encode(torch.ones(70), codec="int8")
    codes = encoded.codes.clone()
    codes[70:] = 77
    assert torch.equal(gram([Encoded(codes, encoded.scales, "int8", 64, 70)]), gram([encoded]))


@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_the_largest_sums(simd: str, codec: str) -> None:
    """The lowest codes of all, which have no counterpart, in the longest blocks; lists that do not fill up fours."""
    lowest = {"int8": 0x80, "int4": 0x88, "int2": 0b10101010}[codec]
    bits = int(codec.removeprefix("int"))
    size, square = 2 * 1024 + 33, 4.0 ** (bits - 1)
    codes = torch.full((3 * 1024 * bits // 8,), lowest, dtype=torch.uint8)
    encoded = Encoded(codes, torch.ones(3, dtype=torch.bfloat16), codec, 1024, size)
    for count in range(1, 10):
        assert bool((gram([encoded] * count) == size * square).all())
        assert bool((gram([encoded] * count, [encoded] * (10 - count)) == size * square).all())
    assert norms([encoded]) == (math.sqrt(size * square),)


def test_geometry_of_a_round() -> None:
    """What a rule reads off: the mean's norm, and each delta's cosine with its own last one."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(4, 3000, generator=generator)
    now = 0.3 * before + torch.randn(4, 3000, generator=generator)
    last, this = ([encode(delta) for delta in deltas] for deltas in (before, now))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mean = aggregate(this, weights).double()
    assert float(weights.double() @ gram(this) @ weights.double()) == pytest.approx(float(mean @ mean), rel=1e-5)
    lengths = torch.tensor(norms(this), dtype=torch.float64) * torch.tensor(norms(last), dtype=torch.float64)
    cosines = gram(this, last).diagonal() / lengths
    torch.testing.assert_close(cosines, torch.cosine_similarity(stacked(this), stacked(last)), rtol=0, atol=1e-14)
    assert bool((cosines > 0.2).all())


FIVE = payloads(5, 100)
BAD = Encoded(FIVE[1].codes, FIVE[1].scales.clone().fill_(math.nan), "int4", FIVE[1].block, 100)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: gram([]), ValueError, "gram: no payloads; did every client fail", id="none"),
        pytest.param(lambda: gram(FIVE, []), ValueError, "gram: no others", id="none-others"),
        pytest.param(lambda: gram([*FIVE, {}]), TypeError, "gram: payload 5 must be an Encoded, got dict", id="type"),
        pytest.param(lambda: gram(FIVE, [3]), TypeError, "gram: other 0 must be an Encoded, got int", id="type-other"),
        pytest.param(
            lambda: gram([*FIVE, *payloads(1, 99)]),
            ValueError,
            "gram: payload 5 has 99 parameters, payload 0 has 100; was it made from another model",
            id="size",
        ),
        pytest.param(lambda: gram(FIVE, payloads(1, 99)), ValueError, "gram: other 0 has 99 parameters", id="others"),
        pytest.param(lambda: gram([*FIVE, BAD]), ValueError, "payload 5 has the value nan at index 0", id="nan"),
        pytest.param(lambda: gram(FIVE, [BAD]), ValueError, "other 0 has the value nan at index 0", id="nan-other"),
        pytest.param(
            lambda: gram(FIVE, num_threads=0), ValueError, "gram: num_threads must be at least 1", id="threads"
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


MEMORY = """
import torch
from fgrpo_kernels.codec import decode, encode, gram

def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

size = 1 << 22
one = encode(torch.ones(size))
gram([one] * 3)
start = peak()
gram([one] * 64)
ours = peak() - start
three = [decode(one) for _ in range(3)]
print(ours / (4 * size), (peak() - start) / (4 * size))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_decoded_copies() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    ours, three_decoded = map(float, done.stdout.split())  # in results of float32 [P]
    assert ours < 0.5
    assert three_decoded > 1.5, "the measure sees decoded copies"
