"""CPU seconds and memory of everything that a command starts, sampled from outside. Linux only.

A page that several processes share counts once, so that neither workers nor shared buffers look larger than they are.
Each look at the processes adds up their private pages; the shared ones, which the kernel takes long to apportion and
which change little, are looked at as seldom as keeps that under 2% of a core. Moments are those of `time.monotonic`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
_SHARED_BUDGET = 0.02
_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Samples:
    """What was seen of a command and its descendants.

    Attributes:
        moments: when it was looked at.
        cpu_s: CPU seconds until then of all processes, also those that have ended.
        memory_bytes: of those that lived then.
    """

    moments: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)

    def cpu_between(self, start: float, end: float) -> float:
        """CPU seconds in a span of time, between samples by the straight line."""
        return self._cpu_at(end) - self._cpu_at(start)

    def peak_between(self, start: float, end: float) -> int:
        """The most memory seen in a span of time, or just before and after it if it lies between two samples."""
        first, last = bisect_left(self.moments, start), bisect_right(self.moments, end)
        return max(self.memory_bytes[first:last] or self.memory_bytes[max(first - 1, 0) : last + 1])

    def _cpu_at(self, moment: float) -> float:
        after = min(max(bisect_right(self.moments, moment), 1), len(self.moments) - 1)
        (t0, t1), (c0, c1) = self.moments[after - 1 : after + 1], self.cpu_s[after - 1 : after + 1]
        return c0 + (c1 - c0) * (moment - t0) / (t1 - t0)


def watch(
    command: Sequence[str], environment: Mapping[str, str], log: Path, *, interval: float, timeout: float
) -> tuple[int, float, Samples]:
    """Run a command to its end, everything that it prints going to `log`.

    Nothing that it started outlives it, whether it ends, fails, or this process is interrupted. Nobody may start other
    processes from this one meanwhile: whatever new descends from here is taken to be the command's.

    Returns:
        Its exit status, the moment it was started, and the samples.

    Raises:
        TimeoutError: after `timeout` seconds.
    """
    samples, cpu, memory, others = Samples(), _CpuByProcess(), _Memory(), _descendants()
    with log.open("wb") as output, _adopting_orphans():
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                alive = _descendants(others)
                samples.moments.append(time.monotonic())
                samples.cpu_s.append(cpu.total(alive))
                samples.memory_bytes.append(memory.total(alive))
                if samples.moments[-1] - started > timeout:
                    raise TimeoutError(f"not done after {timeout:.0f} s")
                time.sleep(interval)
        finally:
            _end_all(others)
            process.wait()
    return process.returncode, started, samples


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Descendants whose parent ends become children of this process, so that none is lost from sight."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot adopt the processes that a command leaves behind")
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class _CpuByProcess:
    """Remembers the CPU seconds of processes past their end."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], float] = {}

    def total(self, alive: Mapping[int, tuple[int, float]]) -> float:
        self._seen.update({(pid, born): cpu_s for pid, (born, cpu_s) in alive.items()})
        return sum(self._seen.values())


class _Memory:
    """Adds up private pages at every look, and shared ones now and then."""

    def __init__(self) -> None:
        self._shared_bytes, self._next = 0, 0.0

    def total(self, alive: Collection[int]) -> int:
        private = sum(map(_private_bytes, alive))
        if time.monotonic() >= self._next:
            began = time.process_time()
            self._shared_bytes = max(0, sum(map(_proportional_bytes, alive)) - private)
            self._next = time.monotonic() + (time.process_time() - began) / _SHARED_BUDGET
        return private + self._shared_bytes


def _private_bytes(pid: int) -> int:
    try:
        _, resident, shared, *_ = Path("/proc", str(pid), "statm").read_text().split()
    except OSError:  # it has just ended
        return 0
    return _PAGE * (int(resident) - int(shared))


def _proportional_bytes(pid: int) -> int:
    """All resident pages, each divided by the number of processes that have it (PSS)."""
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _descendants(besides: Collection[int] = ()) -> dict[int, tuple[int, float]]:
    """Return when each was born (in ticks; a number may be used again) and its CPU seconds, by process number.

    Left out are the processes `besides` and what descends from them.
    """
    children, found = defaultdict(list), {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            # The name, which may hold anything, stands in parentheses before these fields.
            values = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children[int(values[1])].append(int(entry))
        found[int(entry)] = (int(values[19]), (int(values[11]) + int(values[12])) / _TICKS)
    below, reached = {}, children[os.getpid()]
    while reached:
        pid = reached.pop()
        if pid not in besides:
            below[pid] = found[pid]
            reached += children[pid]
    return below


def _end_all(others: Collection[int], patience: float = 5.0) -> None:
    """End whatever else still descends from this process: politely, and after a while not."""
    deadline = time.monotonic() + patience
    asked: set[int] = set()
    while alive := _descendants(others):
        late = time.monotonic() > deadline
        for pid in alive if late else alive.keys() - asked:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= alive.keys()
        for pid in alive:
            with suppress(ChildProcessError):  # not a child of this very process, or taken note of already
                os.waitpid(pid, os.WNOHANG)  # an ended child stays in the list of processes until then
        time.sleep(0.05)
