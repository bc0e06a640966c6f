"""`aggregate` under pytest-benchmark: fgrpo_kernels/bench/ops/aggregate.py says what is measured."""

from typing import Any

from contests import contests, measure


@contests("aggregate")
def test_aggregate(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
