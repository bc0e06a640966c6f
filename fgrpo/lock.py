"""One process at a time in a folder: two that write the same rounds would spoil both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fgrpo.errors import RunError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder. It is free again when the process ends, in whatever way.

    Raises:
        RunError: another process holds it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{folder}: another process is at work in it; wait for it, or name another folder") from None
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
