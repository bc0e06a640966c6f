"""`robust` under pytest-benchmark. Cases and contenders: fgrpo_kernels/bench/ops/robust.py; options: contests.py."""

from typing import Any

from contests import contests, measure


@contests("robust")
def test_robust(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
