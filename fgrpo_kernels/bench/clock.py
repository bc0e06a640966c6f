"""Seconds a call, of contenders in turns: a machine's speed changes within seconds, and with what runs beside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fgrpo_kernels.bench.case import Run


class Clock(Protocol):
    """Times contenders in turns."""

    def turns(self, runs: Sequence[Run], rounds: int, calls: Sequence[int]) -> list[list[float]]:
        """Seconds a call of each contender, one number a round; a turn of contender i is `calls[i]` calls."""


class HostClock:
    """For what is done when the call returns."""

    def turns(self, runs: Sequence[Run], rounds: int, calls: Sequence[int]) -> list[list[float]]:
        seconds: list[list[float]] = [[] for _ in runs]
        for _ in range(rounds):
            for run, number, taken in zip(runs, calls, seconds, strict=True):
                start = time.perf_counter()
                for _ in range(number):
                    run()
                taken.append((time.perf_counter() - start) / number)
        return seconds


class DeviceClock:
    """By events in the device's queue. It is filled without a wait between, so that a launch costs what it costs in a
    program that keeps the device busy."""

    def __init__(self, device: str) -> None:
        self._module: Any = torch.get_device_module(device)

    def turns(self, runs: Sequence[Run], rounds: int, calls: Sequence[int]) -> list[list[float]]:
        pairs: list[list[Any]] = [[] for _ in runs]
        self._module.synchronize()
        for _ in range(rounds):
            for run, number, taken in zip(runs, calls, pairs, strict=True):
                start, stop = (self._module.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(number):
                    run()
                stop.record()
                taken.append((start, stop))
        self._module.synchronize()
        return [
            [start.elapsed_time(stop) / 1e3 / number for start, stop in taken]
            for number, taken in zip(calls, pairs, strict=True)
        ]


def clock_of(device: str) -> Clock:
    return HostClock() if device == "cpu" else DeviceClock(device)
