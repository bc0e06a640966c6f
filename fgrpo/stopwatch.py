"""Seconds per stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager


class Stopwatch:
    """Adds up wall-clock seconds per stage, and tells `announce` which stage begins."""

    def __init__(self, announce: Callable[[str], None] = lambda stage: None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._announce = announce

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._announce(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


@contextmanager
def together(stopwatches: Sequence[Stopwatch], stage: str) -> Iterator[None]:
    """Time a stage that several go through at once: each gets an equal share of its seconds."""
    before = [stopwatch.seconds.get(stage, 0.0) for stopwatch in stopwatches]
    with ExitStack() as stack:
        for stopwatch in stopwatches:
            stack.enter_context(stopwatch(stage))
        yield
    for stopwatch, seconds in zip(stopwatches, before, strict=True):
        stopwatch.seconds[stage] = seconds + (stopwatch.seconds[stage] - seconds) / len(stopwatches)
