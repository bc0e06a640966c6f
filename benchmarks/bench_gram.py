"""`gram` under pytest-benchmark: fgrpo_kernels/bench/ops/gram.py says what is measured."""

from typing import Any

from contests import contests, measure


@contests("gram")
def test_gram(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
