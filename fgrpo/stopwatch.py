"""Seconds per stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
