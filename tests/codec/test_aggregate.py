"""The server's side: any order gives the same bits, what is learned of clients on the way, many clients, memory."""

import random
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import specification
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_kernels import _C
from fgrpo_kernels.codec import Encoded, aggregate, aggregate_with_stats, decode, encode, gram
from fgrpo_kernels.robust import norms, trimmed_mean

SIZE = 2500


def mixed_payloads() -> list[Encoded]:
    """Every codec, two blocks, both scales; two equal payloads, and one that differs from them in its last code."""
    generator = torch.Generator().manual_seed(0)
    formats = [(codec, block) for codec in specification.CODECS for block in (32, 64, 64)]
    payloads = [encode(torch.randn(SIZE, generator=generator), codec=codec, block=block) for codec, block in formats]
    payloads += [encode(torch.randn(SIZE, generator=generator), scale="mse") for _ in range(3)]
    twin = payloads[4]
    codes = twin.codes.clone()
    codes[twin.codes.numel() - 64 + SIZE % 64 // 2] ^= 1
    return [*payloads, twin, Encoded(codes, twin.scales, twin.codec, twin.block, twin.size)]


PAYLOADS = mixed_payloads()
WEIGHTS = [0.05 if k % 3 else 0.0625 for k in range(len(PAYLOADS))]


@settings(max_examples=60)
@given(order=st.permutations(range(len(PAYLOADS))), threads=st.integers(1, 3))
def test_any_order_gives_the_same_bits(order: list[int], threads: int) -> None:
    expected, stats = aggregate_with_stats(PAYLOADS, WEIGHTS)
    payloads, weights = [PAYLOADS[k] for k in order], [WEIGHTS[k] for k in order]
    total = aggregate(payloads, weights, num_threads=threads)
    assert total.numpy().tobytes() == expected.numpy().tobytes()
    total, permuted = aggregate_with_stats(payloads, weights, num_threads=threads)
    assert total.numpy().tobytes() == expected.numpy().tobytes()
    assert torch.equal(permuted.squared_norms, stats.squared_norms[list(order)])
    assert torch.equal(permuted.dots_with_mean, stats.dots_with_mean[list(order)])


class FromBytes(Sequence[Encoded]):
    """Payloads that are made anew whenever they are asked for, as from files."""

    def __len__(self) -> int:
        return len(PAYLOADS)

    def __getitem__(self, k: int) -> Encoded:  # type: ignore[override]
        payload = PAYLOADS[k]
        return Encoded(payload.codes.clone(), payload.scales.clone(), payload.codec, payload.block, payload.size)


@pytest.mark.parametrize(
    "of",
    [
        lambda payloads: aggregate(payloads, WEIGHTS),
        lambda payloads: gram(payloads, payloads),
        lambda payloads: torch.tensor(norms(payloads)),
        lambda payloads: trimmed_mean(payloads, 2),
    ],
    ids=["aggregate", "gram", "norms", "trimmed_mean"],
)
def test_payloads_may_be_made_as_they_are_asked_for(of: Callable[[Sequence[Encoded]], torch.Tensor]) -> None:
    assert torch.equal(of(FromBytes()), of(PAYLOADS))


def test_payloads_cut_after_they_were_made_are_refused() -> None:
    payload = encode(torch.ones(SIZE), codec="int8")
    payload.codes.resize_(64)
    with pytest.raises(ValueError, match="aggregate: payload 1: 2500 values need 2560 bytes of codes"):
        aggregate([PAYLOADS[0], payload], [0.5, 0.5])


def with_last_code(encoded: Encoded, code: int) -> Encoded:
    codes = encoded.codes.clone()
    codes[-1] = code
    return Encoded(codes, encoded.scales.clone(), encoded.codec, encoded.block, encoded.size)


@pytest.mark.parametrize("codec", ["int8", "int2", "none"])
def test_payloads_that_differ_at_their_end_have_an_order(codec: str) -> None:
    """More equal bytes than the order is first found by; among the different ones are copies. A large first term makes
    the sum depend on who comes next.
    """
    size = 400_000
    deltas = [torch.full((size,), 1e6)] + [torch.arange(size) % 7 / 3.0] * 3
    encodeds = [encode(delta, codec=codec) for delta in deltas]
    encodeds += [with_last_code(encoded, code) for encoded in encodeds for code in (3, 5, 5, 3)]
    weights = [0.3] * len(encodeds)
    expected = specification.aggregate(encodeds, weights).tobytes()
    for seed in range(4):
        shuffled = random.Random(seed).sample(encodeds, len(encodeds))
        total, stats = aggregate_with_stats(shuffled, weights, num_threads=1 + seed)
        assert total.numpy().tobytes() == expected
        assert aggregate(shuffled, weights, num_threads=1 + seed).numpy().tobytes() == expected
        decoded = torch.stack([decode(encoded) for encoded in shuffled]).double()
        torch.testing.assert_close(stats.squared_norms, decoded.square().sum(1), rtol=1e-12, atol=0)


def test_order_matters_without_a_rule() -> None:
    """The sums of these payloads do depend on the order of addition, or the test above would show nothing."""
    sums = set()
    for seed in range(10):
        order = random.Random(seed).sample(range(len(PAYLOADS)), len(PAYLOADS))
        total = torch.zeros(SIZE)
        for k in order:
            total += WEIGHTS[k] * decode(PAYLOADS[k])
        sums.add(total.numpy().tobytes())
    assert len(sums) > 1


def dot_error(codec: str, block: int = 64) -> float:
    """Of dot products with the mean: by codes so many roundings to float32 follow each other, by values none."""
    return 1e-13 if codec in ("bf16", "none") else (max(4, block // 16) + 2) * 2.0**-24


@pytest.mark.parametrize("size", [1, 15, 16, 17, 2048, 2049, 5000, 300_001])
def test_stats_are_norms_and_dot_products(simd: str, size: int) -> None:
    encodeds = [encode(torch.randn(size), codec=codec) for codec in specification.CODECS]
    weights = [0.3, -0.2, 0.4, 0.1, 0.0]
    total, stats = aggregate_with_stats(encodeds, weights)
    assert torch.equal(total, aggregate(encodeds, weights))
    decoded = torch.stack([decode(encoded).double() for encoded in encodeds])
    assert stats.squared_norms.dtype == stats.dots_with_mean.dtype == torch.float64
    torch.testing.assert_close(stats.squared_norms, decoded.square().sum(1), rtol=1e-13, atol=0)
    # Relative to the products' magnitudes: a dot product's may cancel.
    products = decoded * total.double()
    bounds = torch.tensor([dot_error(codec) for codec in specification.CODECS]).double() * products.abs().sum(1)
    assert bool(((stats.dots_with_mean - products.sum(1)).abs() <= bounds).all())


def lowest_codes(codec: str, block: int, size: int) -> Encoded:
    """Every code is the lowest: integers that add up products with them are as large as they become."""
    payload = encode(torch.zeros(size), codec=codec, block=block)
    return Encoded(
        payload.codes.fill_({"int8": 0x80, "int4": 0x88, "int2": 0xAA}[codec]),
        payload.scales.fill_(0.0078),
        codec,
        block,
        size,
    )


@pytest.mark.parametrize("others", [1.0, 1e-4, 1e-9])
@pytest.mark.parametrize("block", [32, 64, 128, 256, 512, 1024])
def test_stats_of_every_block_and_of_means_near_and_far_from_zero(simd: str, block: int, others: float) -> None:
    """With 1e-9 the mean's values lie too far apart for the integers that products are otherwise made of."""
    size = 8192
    for codec in ("int8", "int4", "int2"):
        encodeds = [lowest_codes(codec, block, size)]
        encodeds += [encode(torch.randn(size) * others, codec=codec, block=block) for _ in range(2)]
        encodeds[0].codes[: len(encodeds[0].codes) // 2] = 0
        for weights in ([1.0, 0.0, 0.0], [0.3, 0.4, -0.2]):
            total, stats = aggregate_with_stats(encodeds, weights)
            decoded = torch.stack([decode(encoded).double() for encoded in encodeds])
            torch.testing.assert_close(stats.squared_norms, decoded.square().sum(1), rtol=1e-13, atol=0)
            products = decoded * total.double()
            bounds = dot_error(codec, block) * products.abs().sum(1)
            assert bool(((stats.dots_with_mean - products.sum(1)).abs() <= bounds).all())


def test_roundings_of_dot_products_do_not_pile_up(simd: str) -> None:
    """Beyond a block sums are in float64, and the blocks' errors are as often up as down."""
    encodeds = [encode(torch.randn(1 << 20), codec="int8") for _ in range(4)]
    total, stats = aggregate_with_stats(encodeds, [0.1, 0.2, 0.3, 0.4])
    decoded = torch.stack([decode(encoded).double() for encoded in encodeds])
    errors = stats.dots_with_mean - decoded @ total.double()
    assert float((errors.abs() / (decoded.norm(dim=1) * total.double().norm())).max()) < 1e-9


def test_stats_are_the_same_bits_everywhere() -> None:
    encodeds = [encode(torch.randn(1_000_003), codec=codec) for codec in specification.CODECS]
    encodeds += [encode(torch.randn(1_000_003), codec="int2", block=32), encode(torch.randn(1_000_003), block=256)]
    outcomes = set()
    previous = _C.use_simd(_C.simd_levels()[0])
    try:
        for level in _C.simd_levels():
            _C.use_simd(level)
            for threads in (1, 2, 5):
                total, stats = aggregate_with_stats(encodeds, [0.2] * 7, num_threads=threads)
                tensors = (total, stats.squared_norms, stats.dots_with_mean)
                outcomes.add(b"".join(tensor.numpy().tobytes() for tensor in tensors))
    finally:
        _C.use_simd(previous)
    assert len(outcomes) == 1


def test_stats_of_huge_and_tiny_deltas_stay_in_range() -> None:
    for scale in (1e-30, 1e30):
        encoded = encode(torch.randn(1000) * scale, codec="int8")
        _, stats = aggregate_with_stats([encoded], [0.5])
        expected = decode(encoded).double().square().sum()
        assert stats.squared_norms[0] == pytest.approx(float(expected), rel=1e-13)
        assert stats.dots_with_mean[0] == pytest.approx(float(expected) / 2, rel=1e-6)


@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_codes_whose_products_with_the_mean_pass_float32(simd: str, codec: str) -> None:
    """A mean near float32's largest, times a code: beyond it, though the dot product is not."""
    encoded = encode(torch.randn(4096).sign() * 2.0**100, codec=codec)
    total, stats = aggregate_with_stats([encoded], [2.0**27])
    decoded = decode(encoded).double()
    assert bool(torch.isfinite(total).all())
    assert stats.squared_norms[0] == pytest.approx(float(decoded.square().sum()), rel=1e-13)
    assert stats.dots_with_mean[0] == pytest.approx(float(decoded @ total.double()), rel=1e-6)


def test_nothing_to_aggregate() -> None:
    total, stats = aggregate_with_stats([encode(torch.empty(0))] * 2, [0.5, 0.5])
    assert total.shape == (0,)
    assert stats.squared_norms.tolist() == [0.0, 0.0]


def test_ten_thousand_clients_with_mixed_codecs() -> None:
    clients, size = 10_000, 3000
    generator = torch.Generator().manual_seed(0)
    kinds = [{"codec": codec} for codec in specification.CODECS] + [{"codec": "int4", "block": 32, "scale": "mse"}]
    # A hundred different payloads; a client's delta is one of them.
    distinct = [encode(torch.randn(size, generator=generator), **kinds[k % 6]) for k in range(100)]
    decoded = torch.stack([decode(encoded) for encoded in distinct])
    chosen = torch.randint(100, (clients,), generator=generator)
    weights = torch.rand(clients, generator=generator).softmax(0)
    expected = torch.zeros(100, dtype=torch.float64).index_add_(0, chosen, weights.double()) @ decoded.double()

    encodeds = [distinct[k] for k in chosen]
    total, stats = aggregate_with_stats(encodeds, weights)
    assert float((total - expected).norm() / expected.norm()) < 1e-4  # 10,000 additions in float32
    assert torch.equal(total, aggregate(encodeds[::-1], weights.flip(0)))
    torch.testing.assert_close(stats.squared_norms, decoded.double().square().sum(1)[chosen], rtol=1e-12, atol=0)


MEMORY = """
import resource, sys, torch
from fgrpo_kernels.codec import aggregate, aggregate_with_stats, encode
size, clients = 1 << 22, 64
delta = torch.randn(size)
encodeds = [encode(delta, seed=k, rounding="stochastic") for k in range(clients)]
out = torch.zeros(size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
aggregate(encodeds, [1 / clients] * clients, out)
aggregate_with_stats(encodeds, [1 / clients] * clients, out)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * size))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in kilobytes, as Linux gives it")
def test_sixty_four_clients_need_no_memory_beyond_the_result() -> None:
    """Decoded copies would take 64 times the result; the rest of the process (threads' stacks) is far below one."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.25
