"""`encode` under pytest-benchmark: fgrpo_kernels/bench/ops/encode.py says what is measured."""

from typing import Any

from contests import contests, measure


@contests("encode")
def test_encode(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
