"""How much memory one call takes beyond what is there before it, and memory that stays with the process."""

from __future__ import annotations

import ctypes
import re
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from fgrpo_kernels.bench.case import Run

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # glibc's malloc.h
SETTLED = 256  # page faults a call, 1 MiB
CALMED = 3  # calls one after the other that took none, until it is believed
MOST_CALLS = 12  # until then


@cache
def keep_freed_memory() -> None:
    """Have the process keep what is freed, so that a contender that allocates its result writes to memory in use, too.

    By default glibc gives blocks above 32 MiB back to the system. A contender without an `out` is then timed mostly as
    the system's zeroing of new pages (docs/log.md has how much that was). Does nothing without glibc.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_ARENA_MAX, 1)  # one heap, so that what one thread frees another finds


def settle(runs: Sequence[Run], seconds: float) -> None:
    """Call each until it takes no new memory from the system, for at most `seconds` and `MOST_CALLS` calls each.

    The heap needs some calls until a large block that was freed is found again: one finds it, the next ones do not.
    """
    for run in runs:
        start, calm = time.perf_counter(), 0
        for _ in range(MOST_CALLS):
            before = _page_faults()
            run()
            calm = calm + 1 if _page_faults() - before < SETTLED else 0
            if calm == CALMED or time.perf_counter() - start > seconds:
                break


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_bytes(run: Run, device: str) -> int | None:
    """The most memory that a call holds at once beyond what is there before it, its result included.

    None where the system cannot say. On a CPU it is the process's resident memory, in pages.
    """
    return _of_process(run) if device == "cpu" else _of_device(run, device)


def _of_device(run: Run, device: str) -> int:
    module = torch.get_device_module(device)
    module.synchronize()
    module.reset_peak_memory_stats()
    before = module.memory_allocated()
    result = run()
    module.synchronize()
    del result
    return int(module.max_memory_allocated() - before)


def _of_process(run: Run) -> int | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed but not given back hides what is taken now
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except (OSError, AttributeError):
        return None  # not Linux with glibc
    before = _kibibytes("VmRSS")
    result = run()
    peak = _kibibytes("VmHWM")
    del result
    return max(0, 1024 * (peak - before))


def _kibibytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, "every Linux has it"
    return int(found.group(1))
