"""The first lines of a command: what it loads, and every few seconds that it still does. Imports nothing slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

_EVERY = 4.0  # seconds

Result = TypeVar("Result")


class Loading:
    """Speaks from its start until it ends, or until something else is about to speak (`until`)."""

    def __init__(self, what: object) -> None:
        self._what, self._over = what, False

    def __enter__(self) -> Loading:
        print(f"loading {self._what} ...", flush=True)
        threading.Thread(target=self._speak, args=(time.monotonic(),), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True

    def until(self, start: Callable[..., Result]) -> Callable[..., Result]:
        """Return the same function, before which this falls silent."""

        def started(*arguments: object) -> Result:
            self._over = True
            return start(*arguments)

        return started

    def _speak(self, began: float) -> None:
        # No event, which Ctrl-C at the wrong moment could leave locked; and nobody waits for this thread.
        while True:
            time.sleep(_EVERY)
            if self._over:
                return
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
