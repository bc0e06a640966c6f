"""The codec against what else a CPU offers: FBGEMM inside Torch, float32 addition, and a copy of memory.

    PARAMETERS=33554432 THREADS=2 python -m pytest benchmarks/bench_codec.py

Rates are payloads times parameters a second; all contenders run in one session on the same data, and ours write to
memory already in use. A contender whose result is wrong fails instead of being timed.
FBGEMM's way: one embedding row a block, one bag a block over the clients, per-sample weights.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fgrpo_kernels.codec import aggregate, decode, encode

CLIENTS = 8
PARAMETERS = int(os.environ.get("PARAMETERS", 1 << 25))
THREADS = int(os.environ.get("THREADS", 2))
FBGEMM = {"int8": "byte", "int4": "4bit"}
ERROR_BOUND = {"int8": 0.02, "int4": 0.16, "none": 1e-6}

Measure = Callable[[str, int, Callable[[], Any]], None]


@pytest.fixture(scope="module")
def rates(request: pytest.FixtureRequest) -> Iterator[dict[str, float]]:
    """Gparam/s by contender, printed when all have run."""
    torch.set_num_threads(THREADS)
    rates: dict[str, float] = {}
    yield rates
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\nGparam/s, {CLIENTS} clients, {PARAMETERS} parameters, {THREADS} threads, medians")
        for name, rate in rates.items():
            print(f"  {name:40s} {rate:8.2f}")


@pytest.fixture
def measure(benchmark: Any, rates: dict[str, float]) -> Measure:
    def run_and_note(name: str, parameters: int, run: Callable[[], Any]) -> None:
        benchmark.pedantic(run, rounds=9, warmup_rounds=2)
        rates[name] = parameters / benchmark.stats.stats.median / 1e9
        benchmark.extra_info["Gparam/s"] = rates[name]

    return run_and_note


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    return torch.arange(1.0, CLIENTS + 1).log().softmax(0)


@pytest.fixture(scope="module")
def deltas() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(PARAMETERS, generator=generator) for _ in range(CLIENTS)]


def float32_mean(deltas: list[torch.Tensor], weights: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    out.zero_()
    for weight, delta in zip(weights.tolist(), deltas, strict=True):
        out.add_(delta, alpha=weight)
    return out


@pytest.fixture(scope="module")
def expected(deltas: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    return float32_mean(deltas, weights, torch.empty(PARAMETERS))


def require_close(total: torch.Tensor, expected: torch.Tensor, codec: str) -> None:
    assert float((total.view(-1) - expected).norm() / expected.norm()) < ERROR_BOUND[codec]


@pytest.mark.parametrize("block", [64, 256])
@pytest.mark.parametrize("codec", ["int8", "int4", "none"])
def test_aggregate(measure: Measure, codec: str, block: int, deltas: Any, weights: Any, expected: Any) -> None:
    encodeds = [encode(delta, codec=codec, block=block) for delta in deltas]
    out = torch.empty(PARAMETERS)
    require_close(aggregate(encodeds, weights, out, num_threads=THREADS), expected, codec)
    run = lambda: aggregate(encodeds, weights, out, num_threads=THREADS)  # noqa: E731
    measure(f"aggregate {codec}, block {block}", CLIENTS * PARAMETERS, run)


@pytest.mark.parametrize("block", [64, 256])
@pytest.mark.parametrize("codec", FBGEMM)
def test_aggregate_fbgemm(measure: Measure, codec: str, block: int, deltas: Any, weights: Any, expected: Any) -> None:
    kind = f"embedding_bag_{FBGEMM[codec]}"
    rows = getattr(torch.ops.quantized, f"{kind}_prepack")(torch.cat([delta.view(-1, block) for delta in deltas]))
    bags = PARAMETERS // block
    indices = torch.arange(CLIENTS * bags, dtype=torch.int32).view(CLIENTS, bags).t().reshape(-1).contiguous()
    offsets = torch.arange(0, CLIENTS * bags, CLIENTS, dtype=torch.int32)
    per_sample = weights.repeat(bags)
    bag = getattr(torch.ops.quantized, f"{kind}_rowwise_offsets")
    run = lambda: bag(rows, indices, offsets, mode=0, per_sample_weights=per_sample)  # noqa: E731
    require_close(run(), expected, codec)
    measure(f"FBGEMM bags {codec}, block {block}", CLIENTS * PARAMETERS, run)


def test_aggregate_torch_float32(measure: Measure, deltas: Any, weights: Any) -> None:
    out = torch.empty(PARAMETERS)
    measure("torch float32 add_", CLIENTS * PARAMETERS, lambda: float32_mean(deltas, weights, out))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_encode(measure: Measure, codec: str, rounding: str, deltas: Any) -> None:
    run = lambda: encode(deltas[0], codec=codec, rounding=rounding, num_threads=THREADS)  # noqa: E731
    require_close(decode(run()), deltas[0], codec)
    measure(f"encode {codec} {rounding}", PARAMETERS, run)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_encode_with_base_and_feedback(measure: Measure, codec: str, deltas: Any) -> None:
    residual = torch.zeros(PARAMETERS)
    run = lambda: encode(deltas[0], deltas[1], codec=codec, residual=residual, num_threads=THREADS)  # noqa: E731
    require_close(decode(run()), deltas[0] - deltas[1], codec)
    measure(f"encode {codec} nearest, base and residual", PARAMETERS, run)


@pytest.mark.parametrize("codec", FBGEMM)
def test_encode_fbgemm(measure: Measure, codec: str, deltas: Any) -> None:
    prepack = getattr(torch.ops.quantized, f"embedding_bag_{FBGEMM[codec]}_prepack")
    measure(f"FBGEMM row-wise quantise {codec}", PARAMETERS, lambda: prepack(deltas[0].view(-1, 64)))


def test_copy(measure: Measure, deltas: Any) -> None:
    out = torch.empty(PARAMETERS)
    measure("copy (8 bytes a parameter)", PARAMETERS, lambda: out.copy_(deltas[0]))
