"""Processes that work for this one: out of reach of Ctrl-C, and gone when it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection as connections
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess

_PATIENCE = 10  # seconds


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Start a process that Ctrl-C in the terminal does not reach, from its first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_only() -> None:
    """Called first in such a process: ignore Ctrl-C, which reaches all processes, and end at once with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the parent does, in whatever way, and whatever is being computed."""
    parent = parent_process()
    assert parent is not None
    connections.wait([parent.sentinel])
    os._exit(1)


def last_words(process: BaseProcess) -> str:
    """Say how a process ended that has closed its line: the end of a sentence that begins with the process."""
    process.join(_PATIENCE)
    process.kill()  # if it has closed the line and lives on
    process.join()
    code = process.exitcode or 0
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    return f"was killed ({name})" + ("; did memory run out?" if name == "SIGKILL" else "")
