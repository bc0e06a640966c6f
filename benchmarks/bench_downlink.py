"""`downlink` under pytest-benchmark: fgrpo_kernels/bench/ops/downlink.py says what is measured."""

from typing import Any

from contests import contests, measure


@contests("downlink")
def test_downlink(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
