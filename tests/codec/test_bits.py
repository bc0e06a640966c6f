"""Same bits: as the NumPy specification, from every instruction set, for every thread count, and as the files here."""

from pathlib import Path

import pytest
import specification
import torch

from fgrpo_kernels import _C
from fgrpo_kernels.codec import Encoded, aggregate, check_codes, decode, encode

FIXTURES = Path(__file__).parent / "fixtures"
SIZES = [0, 1, 31, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000]
QUANTISING = ["int8", "int4", "int2"]


def rough_delta(size: int, seed: int = 0) -> torch.Tensor:
    """Gaussian values with zeros, exact halves, a zero block, subnormals, and magnitudes of 1e-39 to 1e38."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(size, generator=generator)
    delta[torch.rand(size, generator=generator) < 0.1] = 0.0
    delta[100:200] = torch.arange(len(delta[100:200])) / 2.0
    delta[256:448] = 0.0
    delta[512:600] *= 1e-30
    delta[700:800] *= 1e30
    delta[900:1000] *= 1e-39
    delta[1100:1101] = -(2.0**127)
    return delta


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("codec", QUANTISING)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_equals_the_specification(simd: str, codec: str, rounding: str, size: int) -> None:
    seed = 0x0123456789ABCDEF
    for block in (32, 64, 1024):
        base, residual = torch.randn(size), torch.randn(size) * 0.1
        new = rough_delta(size)
        delta = (new - base) + residual
        encoded = encode(new, base, codec=codec, block=block, rounding=rounding, seed=seed, residual=residual)
        codes, scales, decoded = specification.encode(
            delta.numpy(), codec, block, seed if rounding == "stochastic" else None
        )
        assert encoded.codes.numpy().tobytes() == codes.tobytes()
        assert encoded.scales.float().numpy().tobytes() == scales.tobytes()
        assert decode(encoded).numpy().tobytes() == decoded.tobytes()
        assert residual.numpy().tobytes() == (delta.numpy() - decoded).tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("codec", QUANTISING)
def test_mse_equals_the_specification(simd: str, codec: str, size: int) -> None:
    for block in (32, 64, 1024):
        delta = rough_delta(size)
        residual = torch.zeros(size)
        encoded = encode(delta, codec=codec, block=block, scale="mse", residual=residual)
        codes, scales, decoded = specification.encode(delta.numpy(), codec, block, scale="mse")
        assert encoded.scales.float().numpy().tobytes() == scales.tobytes()
        assert encoded.codes.numpy().tobytes() == codes.tobytes()
        assert decode(encoded).numpy().tobytes() == decoded.tobytes()
        assert residual.numpy().tobytes() == (delta.numpy() - decoded).tobytes()
        check_codes(encoded)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_bf16_equals_the_specification(simd: str, rounding: str, size: int) -> None:
    delta, residual = rough_delta(size), torch.zeros(size)
    encoded = encode(delta, codec="bf16", rounding=rounding, seed=9, residual=residual)
    codes, decoded = specification.encode_bfloat16(delta.numpy(), 9 if rounding == "stochastic" else None)
    assert encoded.codes.numpy().tobytes() == codes.tobytes()
    assert torch.equal(decode(encoded), torch.from_numpy(decoded))
    assert residual.numpy().tobytes() == (delta.numpy() - decoded).tobytes()
    if rounding == "nearest":
        assert torch.equal(decode(encoded), delta.bfloat16().float())


@pytest.mark.parametrize("size", SIZES)
def test_aggregate_equals_the_specification(simd: str, size: int) -> None:
    formats = [(codec, block) for codec in specification.CODECS for block in (32, 64, 128, 256, 512, 1024)]
    encodeds = [encode(torch.randn(size), codec=codec, block=block) for codec, block in formats]
    # Eleven of one format: more than are added at once.
    encodeds += [encode(torch.randn(size), codec="int4", scale="mse") for _ in range(10)]
    weights = torch.randn(len(encodeds))
    weights[3] = 0.0
    total = aggregate(encodeds, weights)
    assert total.numpy().tobytes() == specification.aggregate(encodeds, weights.tolist()).tobytes()


@pytest.mark.parametrize("new_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_reads_bfloat16_parameters(simd: str, new_dtype: torch.dtype, base_dtype: torch.dtype) -> None:
    new, base = torch.randn(3001).to(new_dtype), torch.randn(3001).to(base_dtype)
    from_parameters, from_delta = encode(new, base), encode(new.float() - base.float())
    assert torch.equal(from_parameters.codes, from_delta.codes)
    assert torch.equal(from_parameters.scales, from_delta.scales)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("codec", specification.CODECS)
def test_every_thread_count_and_instruction_set_gives_the_same_bits(codec: str, rounding: str) -> None:
    size = 1_000_003
    new, base, start = torch.randn(size), torch.randn(size), torch.randn(size) * 0.01
    weights = [0.3, -0.2, 1.7]
    outcomes = set()
    previous = _C.use_simd(_C.simd_levels()[0])
    try:
        for level in _C.simd_levels():
            _C.use_simd(level)
            for threads in (1, 2, 7):
                residual = start.clone()
                encoded = encode(
                    new, base, codec=codec, rounding=rounding, seed=5, residual=residual, num_threads=threads
                )
                total = aggregate([encoded] * 3, weights, num_threads=threads)
                arrays = (encoded.codes, encoded.scales.view(torch.int16), residual, total)
                outcomes.add(b"".join(tensor.numpy().tobytes() for tensor in arrays))
    finally:
        _C.use_simd(previous)
    assert len(outcomes) == 1


@pytest.mark.parametrize("start", [0, 1], ids=["aligned", "unaligned"])
def test_large_results_which_bypass_the_caches(simd: str, start: int) -> None:
    size = (1 << 22) + 5
    delta = torch.randn(size)
    out = torch.full((start + size,), float("nan"))[start:]
    assert torch.equal(decode(encode(delta, codec="none"), out, num_threads=2), delta)


def test_flushing_subnormals_in_torch_changes_nothing() -> None:
    delta = rough_delta(4096)
    expected = encode(delta, codec="int8")
    assert torch.set_flush_denormal(True)
    try:
        encoded = encode(delta, codec="int8")
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(encoded.codes, expected.codes)
    assert torch.equal(encoded.scales, expected.scales)


def test_philox_gives_the_published_numbers() -> None:
    # The known-answer test of Random123 for counter 0 and key 0: 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
    assert specification.philox(0, 8).tobytes().hex(" ", 4) == "d5e82766 8dc569e1 4cac57bc d8db009b"


@pytest.mark.parametrize("name", [*specification.CODECS, *(f"{codec}_mse" for codec in QUANTISING)])
def test_frozen_bytes(simd: str, name: str) -> None:
    """The format may not drift: payloads travel between versions. The input is exact in any arithmetic."""
    delta = torch.tensor([((i * 37) % 101 - 50) * 2.0 ** (i % 7 - 3) for i in range(150)])
    codec, _, scale = name.partition("_")
    encoded = encode(delta, codec=codec, block=32, scale=scale or "absmax")
    scales = encoded.scales.view(torch.int16).numpy()
    frozen = (FIXTURES / f"{name}_block32.bin").read_bytes()
    assert encoded.codes.numpy().tobytes() + scales.tobytes() == frozen

    codes = torch.frombuffer(bytearray(frozen[: encoded.codes.numel()]), dtype=torch.uint8)
    reread = decode(Encoded(codes, encoded.scales, codec, 32, 150))
    assert reread.numpy().tobytes() == specification.decode(encoded).tobytes()
    assert float((reread - delta).norm() / delta.norm()) < {"int8": 0.01, "int4": 0.15, "int2": 0.6}.get(codec, 0.01)
