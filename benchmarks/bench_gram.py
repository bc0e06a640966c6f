"""`gram` under pytest-benchmark. Cases and contenders: fgrpo_kernels/bench/ops/gram.py; options: contests.py."""

from typing import Any

from contests import contests, measure


@contests("gram")
def test_gram(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
