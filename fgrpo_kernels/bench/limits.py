"""What bounds every contender, measured beside them: the bandwidth of a copy and the rate of a matrix product."""

from __future__ import annotations

import statistics

import torch

from fgrpo_kernels.bench.case import Run
from fgrpo_kernels.bench.clock import Turn, clock_of

COPIED = {"cpu": 1 << 25, "gpu": 1 << 28}  # float32 values: over the caches
SIDE = {"cpu": 2048, "gpu": 8192}  # of the square matrices


def copy_bandwidth(device: str) -> float:
    """Bytes a second of a large copy, read and written bytes both counted."""
    source = torch.ones(COPIED[_kind(device)], device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(device, lambda: target.copy_(source))


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a square product, multiplications and additions both counted."""
    side = SIDE[_kind(device)]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _median_seconds(device, lambda: torch.mm(a, b, out=out))


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" else "gpu"


def _median_seconds(device: str, run: Run) -> float:
    rounds = 5 if device == "cpu" else 20
    run()
    return statistics.median(clock_of(device).turns([Turn(run)], rounds)[0])
