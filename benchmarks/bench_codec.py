"""The codec against what else a CPU offers: FBGEMM inside Torch, Flower, piquant, float32 addition, a copy of memory.

    PARAMETERS=33554432 THREADS=2 python -m pytest benchmarks/bench_codec.py --benchmark-json codec.json
    python benchmarks/plot_codec.py codec.json docs/codec.png

Rates are payloads times parameters a second; all contenders run in one session on the same data. A contender whose
result is wrong fails instead of being timed; one that is not installed is skipped. "warm" writes to memory already in
use, "cold" to new memory, as FBGEMM and the others always do. The share of the limit is the bytes that must be moved
over the bandwidth of a copy that is timed just before. "Times as fast" are medians of rounds in turns with ours at
block 64 (int8 beside Flower). piquant is pypiquant by its name in the package index.
FBGEMM's way: one embedding row a block, one bag a block over the clients, per-sample weights.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fgrpo_kernels.codec import aggregate, aggregate_with_stats, decode, encode

CLIENTS = 8
PARAMETERS = int(os.environ.get("PARAMETERS", 1 << 25))
THREADS = int(os.environ.get("THREADS", 2))
ROUNDS = int(os.environ.get("ROUNDS", 9))
FBGEMM = {"int8": "byte", "int4": "4bit"}
CODE_BYTES = {"int8": 1.0, "int4": 0.5, "int2": 0.25, "bf16": 2.0, "none": 4.0}
ERROR_BOUND = {"int8": 0.02, "int4": 0.16, "int2": 1.2, "bf16": 0.003, "none": 1e-6}

Measure = Callable[..., None]


def bytes_a_value(codec: str, block: int) -> float:
    return CODE_BYTES[codec] + (2 / block if codec.startswith("int") else 0)


@pytest.fixture(scope="module")
def lines(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """A line for each contender, printed when all have run."""
    torch.set_num_threads(THREADS)
    lines: list[str] = []
    yield lines
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\nGparam/s, {PARAMETERS} parameters, {THREADS} threads unless it says otherwise, medians")
        for line in lines:
            print(f"  {line}")


@pytest.fixture(scope="module")
def copy_bandwidth(deltas: list[torch.Tensor]) -> Callable[[], float]:
    """Bytes a second, read and written, of a copy now: other users of the machine's memory come and go."""
    out = torch.empty(PARAMETERS)

    def measure_copy() -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            out.copy_(deltas[0])
            times.append(time.perf_counter() - start)
        return 8 * PARAMETERS / statistics.median(times)

    return measure_copy


@pytest.fixture
def measure(benchmark: Any, lines: Any, copy_bandwidth: Callable[[], float]) -> Measure:
    """measure(name, values, run): `moved` bytes give the share of the limit, `note` goes to the JSON file.

    `ours` are what another contender's `run` is compared with, by the memory that they write to: they run before each
    of its rounds, because a machine's speed changes within seconds, and with what runs beside.
    """

    def run_and_note(
        name: str,
        values: int,
        run: Callable[[], Any],
        moved: float | None = None,
        ours: dict[str, Callable[[], Any]] | None = None,
        **note: Any,
    ) -> None:
        bandwidth = copy_bandwidth()
        before: dict[str, list[float]] = {memory: [] for memory in ours or {}}

        def time_ours() -> None:
            for memory, times in before.items():
                start = time.perf_counter()
                ours[memory]()
                times.append(time.perf_counter() - start)

        benchmark.pedantic(run, setup=time_ours, rounds=ROUNDS, warmup_rounds=2)
        median = benchmark.stats.stats.median
        share = None if moved is None else moved / median / bandwidth
        line = f"{name:52s} {values / median / 1e9:8.2f}" + ("" if share is None else f"   {share:4.0%} of the limit")
        for memory, times in before.items():
            speedups = [theirs / mine for theirs, mine in zip(benchmark.stats.stats.data, times[-ROUNDS:], strict=True)]
            note[f"ours {memory}, times as fast"] = statistics.median(speedups)
            line += f"   ours {memory} {statistics.median(speedups):.2f} times as fast"
        lines.append(line)
        benchmark.extra_info.update(
            {"name": name, "Gparam/s": values / median / 1e9, "share": share, "copy bytes/s": bandwidth, **note}
        )

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


@pytest.mark.parametrize("memory", ["warm", "cold"])
@pytest.mark.parametrize("block", [64, 256])
@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_aggregate(
    measure: Measure, codec: str, block: int, memory: str, deltas: Any, weights: Any, expected: Any
) -> None:
    encodeds = [encode(delta, codec=codec, block=block) for delta in deltas]
    out = torch.empty(PARAMETERS) if memory == "warm" else None
    run = lambda: aggregate(encodeds, weights, out, num_threads=THREADS)  # noqa: E731
    require_close(run(), expected, codec)
    moved = PARAMETERS * (CLIENTS * bytes_a_value(codec, block) + 4)
    measure(f"aggregate {codec}, block {block}, {memory}", CLIENTS * PARAMETERS, run, moved)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_aggregate_equal_payloads(measure: Measure, codec: str, deltas: Any) -> None:
    """Clients that send the same bytes, e.g. zeros, where the order of the terms is hardest to find."""
    equal = [encode(deltas[0], codec=codec) for _ in range(CLIENTS)]
    different = [encode(delta, codec=codec) for delta in deltas]
    out, even = torch.empty(PARAMETERS), [1 / CLIENTS] * CLIENTS
    run = lambda: aggregate(equal, even, out, num_threads=THREADS)  # noqa: E731
    require_close(run(), deltas[0], codec)
    ours = lambda: aggregate(different, even, out, num_threads=THREADS)  # noqa: E731
    measure(f"aggregate {codec}, equal payloads", CLIENTS * PARAMETERS, run, ours={"of different ones": ours})


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
    encodeds, out = [encode(delta, codec=codec, block=64) for delta in deltas], torch.empty(PARAMETERS)
    ours = lambda: aggregate(encodeds, weights, out, num_threads=THREADS)  # noqa: E731
    measure(f"FBGEMM bags {codec}, block {block}", CLIENTS * PARAMETERS, run, ours={"warm": ours})


@pytest.mark.parametrize("codec", ["int8", "int4", "bf16", "none"])
def test_aggregate_with_stats_or_whole_values(
    measure: Measure, codec: str, deltas: Any, weights: Any, expected: Any
) -> None:
    encodeds = [encode(delta, codec=codec) for delta in deltas]
    out = torch.empty(PARAMETERS)
    how = aggregate_with_stats if codec.startswith("int") else aggregate
    run = lambda: how(encodeds, weights, out, num_threads=THREADS)  # noqa: E731
    run()
    require_close(out, expected, codec)
    moved = PARAMETERS * (CLIENTS * bytes_a_value(codec, 64) + 4)
    measure(f"{how.__name__} {codec}, block 64, warm", CLIENTS * PARAMETERS, run, moved)


def test_aggregate_torch_float32(measure: Measure, deltas: Any, weights: Any) -> None:
    out = torch.empty(PARAMETERS)
    measure("torch float32 add_", CLIENTS * PARAMETERS, lambda: float32_mean(deltas, weights, out))


def test_aggregate_flower_float32(measure: Measure, deltas: Any, weights: Any, expected: Any) -> None:
    pytest.importorskip("flwr", reason="Flower is not installed")
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    records = [
        RecordDict(
            {"arrays": ArrayRecord({"delta": Array(delta.numpy())}), "metrics": MetricRecord({"weight": float(weight)})}
        )
        for delta, weight in zip(deltas, weights, strict=True)
    ]
    run = lambda: aggregate_arrayrecords(records, "weight")  # noqa: E731
    require_close(torch.from_numpy(run()["delta"].numpy().copy()), expected, "none")
    encodeds, out = [encode(delta, codec="int8") for delta in deltas], torch.empty(PARAMETERS)
    ours = lambda: aggregate(encodeds, weights, out, num_threads=THREADS)  # noqa: E731
    measure("Flower aggregate_arrayrecords, float32", CLIENTS * PARAMETERS, run, ours={"warm": ours})


@pytest.mark.parametrize("clients", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_aggregate_by_clients(measure: Measure, codec: str, clients: int, deltas: Any) -> None:
    """For the plot: at most 32 payloads of a quarter of the parameters."""
    size = PARAMETERS // 4
    encodeds = [encode(deltas[k % CLIENTS][:size], codec=codec, rounding="stochastic", seed=k) for k in range(clients)]
    out, even = torch.empty(size), [1 / clients] * clients
    run = lambda: aggregate(encodeds, even, out, num_threads=THREADS)  # noqa: E731
    moved = size * (clients * bytes_a_value(codec, 64) + 4)
    measure(f"aggregate {codec}, {clients} of {size}", clients * size, run, moved, codec=codec, clients=clients)


ENCODINGS = {
    "nearest": {},
    "stochastic": {"rounding": "stochastic"},
    "mse": {"scale": "mse"},
}


@pytest.mark.parametrize("memory", ["warm", "cold"])
@pytest.mark.parametrize("how", ENCODINGS)
@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_encode(measure: Measure, codec: str, how: str, memory: str, deltas: Any) -> None:
    settings = {"codec": codec, **ENCODINGS[how]}
    out = encode(deltas[0], **settings) if memory == "warm" else None
    run = lambda: encode(deltas[0], out=out, num_threads=1, **settings)  # noqa: E731
    require_close(decode(run()), deltas[0], codec)
    measure(f"encode {codec} {how}, {memory}, 1 thread", PARAMETERS, run)


def our_encode(delta: torch.Tensor, threads: int, **settings: Any) -> dict[str, Callable[[], Any]]:
    """To memory in use, and to new memory, which is what others take."""
    out = encode(delta, **settings)
    return {
        "warm": lambda: encode(delta, out=out, num_threads=threads, **settings),
        "cold": lambda: encode(delta, num_threads=threads, **settings),
    }


@pytest.mark.parametrize("codec", FBGEMM)
def test_encode_fbgemm(measure: Measure, codec: str, deltas: Any) -> None:
    prepack = getattr(torch.ops.quantized, f"embedding_bag_{FBGEMM[codec]}_prepack")
    torch.set_num_threads(1)
    try:
        run = lambda: prepack(deltas[0].view(-1, 64))  # noqa: E731
        ours = our_encode(deltas[0], 1, codec=codec)
        measure(f"FBGEMM row-wise quantise {codec}, 1 thread", PARAMETERS, run, ours=ours)
    finally:
        torch.set_num_threads(THREADS)


@pytest.mark.parametrize(
    ("dtype", "threads"), [("uint8", 1), ("quint4x2", 1), ("uint8", THREADS), ("quint4x2", THREADS)]
)
def test_encode_piquant_stochastic(measure: Measure, dtype: str, threads: int, deltas: Any) -> None:
    piquant = pytest.importorskip("piquant", reason="piquant is not installed")
    piquant_torch = pytest.importorskip("piquant.torch")
    context, kind = piquant.Context(threads), getattr(torch, dtype)
    scale, zero = piquant_torch.compute_quant_params(deltas[0], dtype=kind, ctx=context)
    settings = {"scale": scale, "zero_point": zero, "dtype": kind, "round_mode": "stochastic", "ctx": context}
    run = lambda: piquant_torch.quantize(deltas[0], **settings)  # noqa: E731
    ours = our_encode(deltas[0], threads, codec="int8" if dtype == "uint8" else "int4", rounding="stochastic")
    measure(f"piquant stochastic {dtype}, {threads} thread(s)", PARAMETERS, run, ours=ours)


@pytest.mark.parametrize("how", ENCODINGS)
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_encode_with_base_and_feedback(measure: Measure, codec: str, how: str, deltas: Any) -> None:
    """Reads three vectors of float32 and writes one, and the codes."""
    settings = {"codec": codec, "residual": torch.zeros(PARAMETERS), **ENCODINGS[how]}
    out = encode(deltas[0], deltas[1], **settings)
    require_close(decode(out) + settings["residual"], deltas[0] - deltas[1], "none")
    run = lambda: encode(deltas[0], deltas[1], out=out, num_threads=THREADS, **settings)  # noqa: E731
    moved = PARAMETERS * (16 + bytes_a_value(codec, 64))
    measure(f"encode {codec} {how}, base and residual, warm", PARAMETERS, run, moved)


def test_copy(measure: Measure, deltas: Any) -> None:
    out = torch.empty(PARAMETERS)
    measure("copy (8 bytes a parameter)", PARAMETERS, lambda: out.copy_(deltas[0]), 8 * PARAMETERS)
