"""Seconds a call, of contenders in turns: a machine's speed changes within seconds, and with what runs beside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fgrpo_kernels.bench.case import Run


@dataclass(frozen=True)
class Turn:
    """What a contender does when its turn has come.

    Attributes:
        calls: that are timed.
        warm: begin with one that is not, so that the contender finds what it left itself and not what the other did:
            dirty lines in the caches, and OpenMP's threads, which spin for some milliseconds after their work.
    """

    run: Run
    calls: int = 1
    warm: bool = False


class Clock(Protocol):
    """Times contenders in turns."""

    def turns(self, turns: Sequence[Turn], rounds: int) -> list[list[float]]:
        """Seconds a call of each contender, one number a round."""


class HostClock:
    """For what is done when the call returns."""

    def turns(self, turns: Sequence[Turn], rounds: int) -> list[list[float]]:
        seconds: list[list[float]] = [[] for _ in turns]
        for _ in range(rounds):
            for turn, taken in zip(turns, seconds, strict=True):
                if turn.warm:
                    turn.run()
                start = time.perf_counter()
                for _ in range(turn.calls):
                    turn.run()
                taken.append((time.perf_counter() - start) / turn.calls)
        return seconds


class DeviceClock:
    """By events in the device's queue. It is filled without a wait between, so that a launch costs what it costs in a
    program that keeps the device busy."""

    def __init__(self, device: str) -> None:
        self._module: Any = torch.get_device_module(device)

    def turns(self, turns: Sequence[Turn], rounds: int) -> list[list[float]]:
        pairs: list[list[Any]] = [[] for _ in turns]
        self._module.synchronize()
        for _ in range(rounds):
            for turn, taken in zip(turns, pairs, strict=True):
                if turn.warm:
                    turn.run()
                start, stop = (self._module.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(turn.calls):
                    turn.run()
                stop.record()
                taken.append((start, stop))
        self._module.synchronize()
        return [
            [start.elapsed_time(stop) / 1e3 / turn.calls for start, stop in taken]
            for turn, taken in zip(turns, pairs, strict=True)
        ]


def clock_of(device: str) -> Clock:
    return HostClock() if device == "cpu" else DeviceClock(device)
