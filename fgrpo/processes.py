"""Processes that work for this one: out of reach of Ctrl-C, and gone when it is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import connection as connections
from multiprocessing import forkserver, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

_PATIENCE = 10  # seconds


def forking_context(modules: Sequence[str]) -> Any:
    """Return the way to start such processes: forked from one that has imported some modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # first, as it would undo the mask
    # What is started under the mask is out of reach from its first moment on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def serve_only() -> None:
    """Called first in such a process: ignore Ctrl-C, which reaches all processes, end at once with the parent, and be
    ready to be killed: libraries' progress bars would lock with a semaphore of the system's, which stays behind."""
    from tqdm import tqdm  # reads the environment, which the parent has set by now

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())
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
