"""`grpo_loss` under pytest-benchmark: fgrpo_kernels/bench/ops/grpo_loss.py says what is measured."""

from typing import Any

from contests import contests, measure


@contests("grpo_loss")
def test_grpo_loss(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
