"""Robust means over codes against the same over decoded tensors in torch.

    PARAMETERS=4194304 THREADS=2 python -m pytest benchmarks/bench_robust.py

The contender stacks the decoded deltas, K * P float32, and calls torch.sort or torch.median; the time of decoding them
counts for it too, as ours starts from the codes. Results are compared before anything is timed. Ratios are medians over
medians in one run; `memory` is what a call adds to the process's peak (Linux), `out` apart, in units of the result, 4P.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fgrpo_kernels.codec import Encoded, aggregate, decode, encode
from fgrpo_kernels.robust import clipped_mean, median, trimmed_mean

PARAMETERS = int(os.environ.get("PARAMETERS", 1 << 22))
THREADS = int(os.environ.get("THREADS", 2))
CLIENTS = (8, 16, 64)

Times = dict[tuple[str, int], dict[str, float]]


@pytest.fixture(scope="module")
def times(request: pytest.FixtureRequest) -> Iterator[Times]:
    """Seconds by operation, number of clients and contender, printed as a table when all have run."""
    torch.set_num_threads(THREADS)
    times: Times = {}
    yield times
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{PARAMETERS} parameters, int4, {THREADS} threads, medians")
        print(f"{'':16s}{'K':>4s}{'ours':>12s}{'values/s':>12s}{'memory':>9s}{'torch':>12s}{'ratio':>8s}")
        for (operation, clients), row in times.items():
            ours = row["ours"]
            rate, memory = clients * PARAMETERS / ours / 1e9, row["peak"] / (4 * PARAMETERS)
            line = f"{operation:16s}{clients:4d}{1e3 * ours:9.1f} ms{rate:8.2f} G/s{memory:9.2f}"
            if "torch" in row:
                line += f"{1e3 * row['torch']:9.1f} ms{row['torch'] / ours:7.1f}x"
            print(line)


@pytest.fixture(scope="module", params=CLIENTS)
def encodeds(request: pytest.FixtureRequest) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [encode(torch.randn(PARAMETERS, generator=generator)) for _ in range(request.param)]


def stacked(encodeds: list[Encoded]) -> torch.Tensor:
    return torch.stack([decode(encoded, num_threads=THREADS) for encoded in encodeds])


def resident(field: str) -> int:
    """Bytes of resident memory: VmRSS now, VmHWM at its peak since the last reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def added_memory(run: Callable[[], Any]) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def note(benchmark: Any, times: Times, operation: str, clients: int, run: Callable[[], Any]) -> None:
    run()
    benchmark.pedantic(run, rounds=5)
    times[operation, clients] = {"ours": benchmark.stats.stats.median, "peak": added_memory(run)}


def torch_seconds(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def test_aggregate(benchmark: Any, times: Times, encodeds: list[Encoded]) -> None:
    out, clients = torch.empty(PARAMETERS), len(encodeds)
    run = lambda: aggregate(encodeds, [1 / clients] * clients, out, num_threads=THREADS)  # noqa: E731
    note(benchmark, times, "aggregate", clients, run)


def test_clipped_mean(benchmark: Any, times: Times, encodeds: list[Encoded]) -> None:
    out, clients = torch.empty(PARAMETERS), len(encodeds)
    weights = [1 / clients] * clients
    bound = 0.9 * PARAMETERS**0.5

    def naive() -> torch.Tensor:
        values = stacked(encodeds)
        factors = (bound / torch.linalg.vector_norm(values, dim=1)).clamp(max=1) / clients
        return torch.mv(values.t(), factors)

    run = lambda: clipped_mean(encodeds, weights, bound, out, num_threads=THREADS)  # noqa: E731
    torch.testing.assert_close(run().mean, naive(), rtol=1e-3, atol=1e-4)
    note(benchmark, times, "clipped_mean", clients, run)
    times["clipped_mean", clients]["torch"] = torch_seconds(naive)


def test_trimmed_mean(benchmark: Any, times: Times, encodeds: list[Encoded]) -> None:
    out, clients = torch.empty(PARAMETERS), len(encodeds)
    trim = clients // 4

    def naive() -> torch.Tensor:
        return stacked(encodeds).sort(0).values[trim : clients - trim].mean(0)

    run = lambda: trimmed_mean(encodeds, trim, out, num_threads=THREADS)  # noqa: E731
    torch.testing.assert_close(run(), naive(), rtol=1e-4, atol=1e-5)
    note(benchmark, times, "trimmed_mean", clients, run)
    times["trimmed_mean", clients]["torch"] = torch_seconds(naive)


def test_median(benchmark: Any, times: Times, encodeds: list[Encoded]) -> None:
    odd, out = encodeds[:-1], torch.empty(PARAMETERS)  # torch.median of an even number is the lower of two

    def naive() -> torch.Tensor:
        return stacked(odd).median(0).values

    run = lambda: median(odd, out, num_threads=THREADS)  # noqa: E731
    assert torch.equal(run(), naive())
    note(benchmark, times, "median", len(odd), run)
    times["median", len(odd)]["torch"] = torch_seconds(naive)
