"""`device_codec` under pytest-benchmark: fgrpo_kernels/bench/ops/device_codec.py says what is measured."""

from typing import Any

from contests import contests, measure


@contests("device_codec")
def test_device_codec(benchmark: Any, contest: tuple[str, str, str]) -> None:
    measure(benchmark, contest)
