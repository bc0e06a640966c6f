"""`robust` under pytest-benchmark: fgrpo_kernels/bench/ops/robust.py says what is measured."""

from typing import Any

from contests import contests, measure


@contests("robust")
def test_robust(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
