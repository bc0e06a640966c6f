"""`downlink` under pytest-benchmark. Cases and contenders: fgrpo_kernels/bench/ops/downlink.py; options: contests.py."""

from typing import Any

from contests import contests, measure


@contests("downlink")
def test_downlink(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
