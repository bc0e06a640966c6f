"""`token_logprobs` under pytest-benchmark: fgrpo_kernels/bench/ops/token_logprobs.py says what is measured."""

from typing import Any

from contests import contests, measure


@contests("token_logprobs")
def test_token_logprobs(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
