"""`group_advantages` under pytest-benchmark: fgrpo_kernels/bench/ops/group_advantages.py says what is measured."""

from typing import Any

from contests import contests, measure


@contests("group_advantages")
def test_group_advantages(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
