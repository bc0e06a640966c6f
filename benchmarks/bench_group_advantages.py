"""`group_advantages` under pytest-benchmark. Cases and contenders: fgrpo_kernels/bench/ops/group_advantages.py; options: contests.py."""

from typing import Any

from contests import contests, measure


@contests("group_advantages")
def test_group_advantages(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
