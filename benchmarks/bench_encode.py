"""`encode` under pytest-benchmark. Cases and contenders: fgrpo_kernels/bench/ops/encode.py; options: contests.py."""

from typing import Any

from contests import contests, measure


@contests("encode")
def test_encode(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
