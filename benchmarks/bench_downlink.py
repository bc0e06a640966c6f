"""Lossless bfloat16 updates: bytes and speed against the raw model, zstd (where the package is there) and a copy.

    PARAMETERS=16777216 THREADS=2 python -m pytest benchmarks/bench_downlink.py

Models: weights of std 0.02 rounded to bfloat16. `adam` moves the float32 weights behind them by steps of an Adam-like
update, lr * m / sqrt(v) of about unit size, once or for 50 steps of one sign; the others change a share of the values
by one unit in the last place. zstd gets new XOR base, its best chance. GB/s are of the model's 2 bytes a parameter.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fgrpo_kernels.downlink import apply_update, encode_update

PARAMETERS = int(os.environ.get("PARAMETERS", 1 << 24))
THREADS = int(os.environ.get("THREADS", 2))
Row = dict[str, float]


def seconds(run: Callable[[], Any], rounds: int = 5) -> float:
    run()
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def adam(lr: float, steps: int) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    def after(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        update = torch.randn(len(weights), generator=generator).clamp(-3, 3)
        return (weights - lr * steps * update).bfloat16()

    return after


def nudged(share: float) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    def after(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        pattern = weights.bfloat16().view(torch.int16)
        step = 2 * torch.randint(0, 2, (len(weights),), generator=generator, dtype=torch.int16) - 1
        moved = torch.rand(len(weights), generator=generator) < share
        return (pattern + step * moved).view(torch.bfloat16)

    return after


CASES = {
    "nothing": nudged(0.0),
    "0.01 % by 1": nudged(1e-4),
    "1 % by 1": nudged(1e-2),
    "30 % by 1": nudged(0.3),
    "all by 1": nudged(1.0),
    "adam 1e-6, 1 step": adam(1e-6, 1),
    "adam 1e-6, 50 steps": adam(1e-6, 50),
    "adam 1e-4, 1 step": adam(1e-4, 1),
}


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[dict[str, Row]]:
    torch.set_num_threads(THREADS)
    source, target = torch.zeros(PARAMETERS, dtype=torch.bfloat16), torch.zeros(PARAMETERS, dtype=torch.bfloat16)
    copy = 2 * PARAMETERS / seconds(lambda: target.copy_(source)) / 1e9
    rows: dict[str, Row] = {}
    yield rows
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{PARAMETERS} parameters, {THREADS} threads, medians; a copy runs at {copy:.1f} GB/s")
        print(f"{'':22s}{'changed':>9s}{'of raw':>9s}{'1/':>7s}{'bits/change':>12s}{'encode':>10s}{'apply':>10s}  zstd")
        for name, row in rows.items():
            zstd = f"{row['zstd_bytes'] / row['bytes']:.2f}x the bytes, {row['zstd_speed']:.2f} GB/s"
            print(
                f"{name:22s}{row['changed']:9.2%}{row['bytes'] / (2 * PARAMETERS):9.3%}"
                f"{2 * PARAMETERS / row['bytes']:7.0f}{8 * row['bytes'] / max(1.0, row['changed'] * PARAMETERS):12.1f}"
                f"{row['encode']:5.2f} GB/s{row['apply']:5.2f} GB/s  {zstd if row['zstd_bytes'] else 'not installed'}"
            )


def zstd(new: torch.Tensor, base: torch.Tensor) -> Row:
    try:
        import zstandard
    except ImportError:
        return {"zstd_bytes": 0.0, "zstd_speed": 0.0}
    difference = (new.view(torch.int16) ^ base.view(torch.int16)).numpy().tobytes()
    compressor = zstandard.ZstdCompressor(level=3, threads=THREADS)
    speed = len(difference) / seconds(lambda: compressor.compress(difference), rounds=1) / 1e9
    return {"zstd_bytes": len(compressor.compress(difference)), "zstd_speed": speed}


@pytest.mark.parametrize("case", CASES)
def test_update(benchmark: Any, rows: dict[str, Row], case: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = 0.02 * torch.randn(PARAMETERS, generator=generator)
    base, new = weights.bfloat16(), CASES[case](weights, generator)
    update, out = encode_update(new, base, num_threads=THREADS), torch.zeros_like(base)
    run = lambda: apply_update(base, update, out, num_threads=THREADS)  # noqa: E731
    assert torch.equal(run().view(torch.int16), new.view(torch.int16))
    benchmark.pedantic(run, rounds=5)
    rows[case] = {
        "changed": float((new.view(torch.int16) != base.view(torch.int16)).double().mean()),
        "bytes": update.nbytes,
        "encode": 2 * PARAMETERS / seconds(lambda: encode_update(new, base, num_threads=THREADS)) / 1e9,
        "apply": 2 * PARAMETERS / benchmark.stats.stats.median / 1e9,
        **zstd(new, base),
    }
