"""The deltas' inner products straight from the codes, against decoding them all and `D @ D.T` in torch.

    PARAMETERS=33554432 THREADS=2 python -m pytest benchmarks/bench_gram.py --benchmark-json gram.json

Torch's side has it good: the float32 matrix [K, P] that it decodes into is there before, in memory already in use. Ours
runs before each of its rounds, on the same payloads; "times as fast" is the median of these pairs. Ours is checked
against the product in float64 before it is timed; torch's error, relative to the norms, is what float32 sums leave.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fgrpo_kernels.codec import Encoded, aggregate, decode, encode, gram
from fgrpo_kernels.robust import norms

PARAMETERS = int(os.environ.get("PARAMETERS", 1 << 25))
THREADS = int(os.environ.get("THREADS", 2))
ROUNDS = int(os.environ.get("ROUNDS", 9))
CHUNK = 1 << 18  # values that are multiplied in float64 at a time, to check

Lines = list[str]


@pytest.fixture(scope="module")
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    """A line for each contender, printed when all have run."""
    torch.set_num_threads(THREADS)
    lines: Lines = []
    yield lines
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\nMilliseconds, {PARAMETERS} parameters, {THREADS} threads, medians")
        for line in lines:
            print(f"  {line}")


def payloads(codec: str, clients: int, size: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [encode(torch.randn(size, generator=generator), codec=codec) for _ in range(clients)]


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(benchmark: Any, ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float, float]:
    """Medians of ours and theirs in seconds, and of their quotients, round by round."""
    times: list[float] = []
    benchmark.pedantic(theirs, setup=lambda: times.append(seconds(ours)), rounds=ROUNDS, warmup_rounds=1)
    pairs = list(zip(times[-ROUNDS:], benchmark.stats.stats.data, strict=True))
    return statistics.median(times[-ROUNDS:]), benchmark.stats.stats.median, statistics.median(b / a for a, b in pairs)


@pytest.mark.parametrize("clients", [8, 32])
@pytest.mark.parametrize("codec", ["int8", "int4", "int2", "bf16", "none"])
def test_gram(benchmark: Any, lines: Lines, codec: str, clients: int) -> None:
    size = PARAMETERS * 8 // clients
    encodeds, decoded = payloads(codec, clients, size), torch.zeros(clients, size)

    def decode_and_multiply() -> torch.Tensor:
        for row, encoded in zip(decoded, encodeds, strict=True):
            decode(encoded, row, num_threads=THREADS)
        return decoded @ decoded.T

    theirs = decode_and_multiply()
    exact = sum(part.double() @ part.double().T for part in decoded.split(CHUNK, dim=1))
    lengths = exact.diagonal().sqrt()
    error = lambda products: float(((products - exact).abs() / lengths.outer(lengths)).max())  # noqa: E731
    assert error(gram(encodeds, num_threads=THREADS)) < 1e-11
    ours = lambda: gram(encodeds, num_threads=THREADS)  # noqa: E731
    mine, their, speedup = in_turns(benchmark, ours, decode_and_multiply)
    name = f"gram {codec}, {clients} of {size}"
    lines.append(
        f"{name:32s} {1e3 * mine:8.1f}   decode and D @ D.T {1e3 * their:8.1f} (error {error(theirs):.0e})   "
        f"ours {speedup:.1f} times as fast"
    )
    benchmark.extra_info.update({"name": name, "ours": mine, "times as fast": speedup, "threads": THREADS})


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_gram_beside_one_pass(benchmark: Any, lines: Lines, codec: str) -> None:
    """What the geometry adds to a round: `aggregate` reads the same codes once, in turns with `norms` and `gram`."""
    encodeds, out = payloads(codec, 8, PARAMETERS), torch.zeros(PARAMETERS)
    one_pass = lambda: aggregate(encodeds, [0.125] * 8, out, num_threads=THREADS)  # noqa: E731
    times: dict[str, list[float]] = {"norms": [], "gram": []}

    def others() -> None:
        times["norms"].append(seconds(lambda: norms(encodeds, num_threads=THREADS)))
        times["gram"].append(seconds(lambda: gram(encodeds, num_threads=THREADS)))

    benchmark.pedantic(one_pass, setup=others, rounds=ROUNDS, warmup_rounds=1)
    medians = {name: statistics.median(taken[-ROUNDS:]) for name, taken in times.items()}
    medians["aggregate"] = benchmark.stats.stats.median
    name = f"{codec}, 8 of {PARAMETERS}"
    lines.append(f"{name:32s} " + ", ".join(f"{what} {1e3 * median:.1f}" for what, median in medians.items()))
    benchmark.extra_info.update({"name": name, "threads": THREADS, **medians})
