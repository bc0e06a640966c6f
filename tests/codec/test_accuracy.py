"""What quantisation loses: error bounds, relative error at every scale, error feedback over rounds, unbiasedness."""

import pytest
import torch

from fgrpo_kernels.codec import aggregate, decode, encode

BITS = {"int8": 8, "int4": 4, "int2": 2}
# (codec, block, scale, relative L2 error on Gaussian data), with two digits of tolerance below.
GAUSSIAN_ERROR = [
    pytest.param("int8", 64, "absmax", 0.0060, id="int8-64"),
    pytest.param("int4", 32, "absmax", 0.097, id="int4-32"),
    pytest.param("int4", 64, "absmax", 0.108, id="int4-64"),
    pytest.param("int4", 128, "absmax", 0.117, id="int4-128"),
    pytest.param("int2", 64, "absmax", 0.72, id="int2-64"),
    pytest.param("bf16", 64, "absmax", 0.00166, id="bf16"),
    pytest.param("int8", 64, "mse", 0.0056, id="int8-64-mse"),
    pytest.param("int4", 32, "mse", 0.0825, id="int4-32-mse"),
    pytest.param("int4", 64, "mse", 0.0909, id="int4-64-mse"),
    pytest.param("int4", 1024, "mse", 0.107, id="int4-1024-mse"),
    pytest.param("int2", 64, "mse", 0.358, id="int2-64-mse"),
]
Q4_0_ERROR = 0.0859  # ggml's 4.5-bit format (blocks of 32 with a 16-bit scale) on Gaussian data


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("codec", "block", "scale", "expected"), GAUSSIAN_ERROR)
def test_gaussian_error(codec: str, block: int, scale: str, expected: float) -> None:
    delta = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    encoded = encode(delta, codec=codec, block=block, scale=scale)
    assert relative_error(decode(encoded), delta) == pytest.approx(expected, rel=0.02)


def test_four_and_a_half_bits_beat_q4_0() -> None:
    delta = torch.randn(1 << 18, generator=torch.Generator().manual_seed(1))
    encoded = encode(delta, codec="int4", block=32, scale="mse")
    assert encoded.nbytes * 8 / encoded.size == 4.5
    assert relative_error(decode(encoded), delta) < 0.97 * Q4_0_ERROR


@pytest.mark.parametrize("codec", BITS)
def test_mse_is_never_worse_than_absmax_by_much_and_better_in_sum(codec: str) -> None:
    """On values with heavy tails, whose blocks differ more than Gaussian ones."""
    delta = torch.distributions.StudentT(3.0).sample((1 << 15,))
    errors = {}
    for scale in ("absmax", "mse"):
        errors[scale] = (decode(encode(delta, codec=codec, scale=scale)) - delta).view(-1, 64).square().sum(1)
    assert float(errors["mse"].sum()) < 0.95 * float(errors["absmax"].sum())
    # The candidates do not include absmax's scale, so single blocks may lose a little.
    assert bool((errors["mse"] < 1.6 * errors["absmax"]).all())


@pytest.mark.parametrize("codec", BITS)
def test_mse_keeps_its_relative_error_from_1e_30_to_1e30(codec: str) -> None:
    delta = torch.randn(1 << 14, generator=torch.Generator().manual_seed(1))
    reference = relative_error(decode(encode(delta, codec=codec, scale="mse")), delta)
    for exponent in range(-30, 31, 10):
        scaled = delta * 10.0**exponent
        assert relative_error(decode(encode(scaled, codec=codec, scale="mse")), scaled) == pytest.approx(
            reference, rel=0.01
        )
    huge = torch.full((64,), -(2.0**127))
    assert relative_error(decode(encode(huge, codec=codec, scale="mse")), huge) < 0.3


@pytest.mark.parametrize("codec", BITS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_no_value_is_off_by_more_than_its_step(codec: str, rounding: str) -> None:
    delta = torch.randn(10_000)
    encoded = encode(delta, codec=codec, rounding=rounding, seed=3)
    step = encoded.scales.double().repeat_interleave(64)[:10_000]
    error = (decode(encoded).double() - delta.double()).abs()
    # A hair more than half a step (or one): scaled values are rounded to float32 before they are rounded to codes.
    assert bool((error <= step * (0.5 if rounding == "nearest" else 1.0) * (1 + 1e-4)).all())
    # And the codes use their whole range: a block's largest value is within 1 % + one step of the largest code.
    peaks = delta[: 156 * 64].view(-1, 64).abs().amax(1)
    largest = 2 ** (BITS[codec] - 1) - 1
    assert bool((encoded.scales[:156].float() * largest >= peaks * (1 - 1e-6)).all())
    assert bool((encoded.scales[:156].float() * largest <= peaks * (1 + 2**-7)).all())


@pytest.mark.parametrize("codec", BITS)
def test_same_relative_error_from_1e_30_to_1e30(codec: str) -> None:
    delta = torch.randn(1 << 15, generator=torch.Generator().manual_seed(1))
    reference = relative_error(decode(encode(delta, codec=codec)), delta)
    for exponent in range(-30, 31, 5):
        scaled = delta * 10.0**exponent
        # The step is a bfloat16 rounded up, so it may fall anywhere within 1 / 128 above the ideal one.
        assert relative_error(decode(encode(scaled, codec=codec)), scaled) == pytest.approx(reference, rel=0.01)
    for exponent in (-90, -60, 60, 90):
        scaled = delta * 2.0**exponent
        assert torch.equal(encode(scaled, codec=codec).codes, encode(delta, codec=codec).codes)


def test_subnormal_and_zero_blocks_decode_to_zero_and_stay_in_the_residual() -> None:
    delta = torch.cat([torch.zeros(64), torch.full((64,), 1e-39), torch.full((64,), 2.0**-149), torch.ones(64)])
    residual = torch.zeros(256)
    encoded = encode(delta, codec="int8", residual=residual)
    assert torch.equal(decode(encoded), torch.cat([torch.zeros(192), torch.ones(64) * decode(encoded)[-1]]))
    assert encoded.scales[:3].tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(residual[:192], delta[:192])


def test_largest_magnitude_decodes_to_a_finite_number() -> None:
    delta = torch.full((64,), 2.0**127)
    for codec in BITS:
        decoded = decode(encode(-delta, codec=codec))
        assert bool(decoded.isfinite().all())
        assert relative_error(decoded, -delta) < 0.005


@pytest.mark.parametrize(
    ("codec", "settings", "feedback", "bound"),
    [
        pytest.param("int4", {}, True, 0.008, id="int4-feedback"),
        pytest.param("int8", {}, True, 0.0008, id="int8-feedback"),
        pytest.param("int2", {}, True, 0.06, id="int2-feedback"),
        pytest.param("bf16", {}, True, 0.0002, id="bf16-feedback"),
        pytest.param("int4", {"scale": "mse"}, True, 0.006, id="int4-mse-feedback"),
        pytest.param("int2", {"scale": "mse"}, True, 0.03, id="int2-mse-feedback"),
        pytest.param("int4", {"rounding": "stochastic"}, True, 0.0095, id="int4-stochastic-feedback"),
        pytest.param("int4", {"rounding": "stochastic"}, False, 0.05, id="int4-stochastic"),
    ],
)
def test_accumulated_error_over_30_rounds(codec: str, settings: dict[str, str], feedback: bool, bound: float) -> None:
    """Eight clients that share a drift: with feedback, what a round rounds off is sent in the next."""
    size, clients = 1 << 18, 8
    generator = torch.Generator().manual_seed(0)
    drift = 0.2 * torch.randn(size, generator=generator)
    residuals = [torch.zeros(size) if feedback else None for _ in range(clients)]
    received, true = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for step in range(30):
        deltas = [drift + torch.randn(size, generator=generator) for _ in range(clients)]
        encodeds = [
            encode(delta, codec=codec, seed=step * clients + k, residual=residuals[k], **settings)
            for k, delta in enumerate(deltas)
        ]
        received += aggregate(encodeds, [1 / clients] * clients)
        true += torch.stack(deltas).double().mean(0)
    error = relative_error(received, true)
    print(f"{codec} {settings} accumulated error {error:.5f}")
    assert error <= bound


def test_stochastic_rounding_is_unbiased_and_follows_the_seed() -> None:
    delta = torch.randn(4096, generator=torch.Generator().manual_seed(2))
    encodeds = [encode(delta, rounding="stochastic", seed=seed) for seed in range(400)]
    mean = aggregate(encodeds, [1 / 400] * 400)
    # A single draw is off by .15; 400 independent ones by a twentieth of that.
    assert relative_error(mean, delta) < 0.15 / 20 * 1.15
    assert torch.equal(encode(delta, rounding="stochastic", seed=7).codes, encodeds[7].codes)
    assert not torch.equal(encodeds[7].codes, encodeds[8].codes)


@pytest.mark.parametrize("codec", [*BITS, "bf16", "none"])
def test_aggregate_is_decode_and_sum(codec: str) -> None:
    encodeds = [encode(torch.randn(5000), codec=codec) for _ in range(9)]
    weights = torch.rand(9).softmax(0)
    out = torch.full((5000,), float("nan"))
    total = aggregate(encodeds, weights, out)
    assert total is out
    expected = sum(
        weight.double() * decode(encoded).double() for weight, encoded in zip(weights, encodeds, strict=True)
    )
    assert relative_error(total, expected) < 2e-7


def test_none_is_exact() -> None:
    delta = torch.randn(1003)
    delta[5] = -0.0
    encoded = encode(delta, codec="none")
    assert decode(encoded).numpy().tobytes() == delta.numpy().tobytes()
    residual = torch.randn(1003)
    total = delta + residual
    assert torch.equal(decode(encode(delta, codec="none", residual=residual)), total)
    assert not residual.any()
    assert encoded.nbytes == 4 * 1003


def test_bytes_on_the_wire() -> None:
    sizes = {codec: encode(torch.randn(1 << 16), codec=codec).nbytes / (1 << 16) for codec in [*BITS, "bf16", "none"]}
    assert sizes == {"int8": 1 + 2 / 64, "int4": 0.5 + 2 / 64, "int2": 0.25 + 2 / 64, "bf16": 2.0, "none": 4.0}
