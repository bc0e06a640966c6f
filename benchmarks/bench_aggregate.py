"""`aggregate` under pytest-benchmark. Cases and contenders: fgrpo_kernels/bench/ops/aggregate.py; options: contests.py."""

from typing import Any

from contests import contests, measure


@contests("aggregate")
def test_aggregate(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
