"""Memory that processes share: no name, so nothing is left behind however they end."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle

import torch
from torch import nn

_ALIGNMENT = 64  # bytes


class SharedMemory:
    """Bytes that several processes map, zero at first.

    An anonymous file, not POSIX shared memory: containers often have no more than 64 MB of that.

    Attributes:
        bytes: uint8.
    """

    def __init__(self, file: int, size: int) -> None:
        self._file = file
        self.bytes = torch.frombuffer(mmap.mmap(file, max(1, size)), dtype=torch.uint8, count=size)

    @staticmethod
    def new(size: int) -> SharedMemory:
        file = _anonymous_file()
        os.ftruncate(file, max(1, size))
        return SharedMemory(file, size)

    def send(self, connection: Connection, process: int | None) -> None:
        """Let the process at the other end of a connection have it, see `receive`."""
        send_handle(connection, self._file, process)

    @staticmethod
    def receive(connection: Connection, size: int) -> SharedMemory:
        return SharedMemory(recv_handle(connection), size)

    def close(self) -> None:
        """Give up the file; the memory goes once nobody maps it any more."""
        os.close(self._file)

    def hold_frozen(self, model: nn.Module) -> None:
        """Move a model's frozen parameters here, or drop them for those that another process has put here.

        The last byte says whether they are here; whoever dies of copying them leaves them to the next.
        """
        frozen = list(_placed(model))
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            for parameter, place in frozen:
                here = self.bytes[place].view(parameter.dtype).view(parameter.shape)
                if not self.bytes[-1]:
                    here.copy_(parameter.detach())
                parameter.data = here
            self.bytes[-1] = 1
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def frozen_bytes(model: nn.Module) -> int:
    """Return the size of memory for `SharedMemory.hold_frozen`; 0 for a model that has nothing to share."""
    return max((place.stop for _, place in _placed(model)), default=-1) + 1


def _placed(model: nn.Module) -> Iterator[tuple[nn.Parameter, slice]]:
    """Yield every frozen parameter in main memory with its place."""
    start = 0
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.device.type == "cpu":
            yield parameter, slice(start, start + parameter.nbytes)
            start += -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fgrpo")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
