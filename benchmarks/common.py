"""What benchmarks share: timing with device events, limits measured in the same run, and the JSON record."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import triton

Record = dict[str, Any]
RESULTS = Path(os.environ.get("OUT", Path(__file__).parent / "results"))


def milliseconds(run: Callable[[], Any], *, repeats: int = 20, warmup: int = 5) -> dict[str, float]:
    """Median, lowest and highest time of `run` in milliseconds, by device events."""
    for _ in range(warmup):
        run()
    torch.cuda.synchronize()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, stop in pairs:
        start.record()
        run()
        stop.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(stop) for start, stop in pairs]
    return {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "repeats": repeats}


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory that `run` holds at once beyond what is there before it, in bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def copy_bandwidth() -> float:
    """Bytes a second of a large copy on the device, read and written bytes both counted."""
    source = torch.randn(1 << 28, device="cuda")  # 1 GiB, over the caches
    target = torch.empty_like(source)
    time = milliseconds(lambda: target.copy_(source))["median_ms"]
    return 2 * source.nbytes / (time / 1e3)


def measure(
    name: str, run: Callable[[], Any], *, moved: int | None = None, bandwidth: float | None = None, **context: Any
) -> Record:
    """One line of the results: time, peak memory and, if the bytes that must be `moved` are given, the share of the
    copy bandwidth."""
    record: Record = {"name": name, **context, **milliseconds(run), "peak_bytes": peak_bytes(run)}
    if moved is not None and bandwidth is not None:
        record["moved_bytes"] = moved
        record["fraction_of_copy"] = moved / (record["median_ms"] / 1e3) / bandwidth
    return record


def failed(name: str, reason: str, **context: Any) -> Record:
    """A contender that was not timed: it is not installed, ran out of memory, or gave a wrong result."""
    return {"name": name, **context, "not_measured": reason}


def attempt(name: str, make: Callable[[], Record], **context: Any) -> Record:
    """`make()`, or the reason why there is no time."""
    try:
        return make()
    except ImportError as error:
        return failed(name, f"not installed: {error}", **context)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return failed(name, "out of memory", **context)
    except AssertionError as error:
        return failed(name, f"wrong result: {error}", **context)
    except Exception as error:  # a contender's own fault must not lose the others' figures
        return failed(name, f"{type(error).__name__}: {error}", **context)


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """`|ours - exact| / |exact|` in float64; NaN never passes a comparison."""
    exact = exact.double()
    return float((ours.double() - exact).norm() / exact.norm())


def header() -> Record:
    """What a number depends on."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        **_context(),
    }


def cpu_header(packages: Iterable[str]) -> Record:
    """What a number of the CPU depends on: the machine, how busy it is as of now, and the versions of `packages`."""
    names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "device": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load": os.getloadavg()[0],
        **{package: _version(package) for package in packages},
        **_context(),
    }


def _context() -> Record:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def save(name: str, head: Record, **content: Any) -> Path:
    """Write `<name>_<device>_<date>.json`: what the numbers depend on, and the numbers."""
    device = re.sub(r"[^A-Za-z0-9]+", "-", head["device"]).strip("-")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}_{device}_{head['date'][:10]}.json"
    path.write_text(json.dumps({"header": head, **content}, indent=1) + "\n")
    return path


def write(op: str, records: list[Record], **limits: float) -> Path:
    """Write `<op>_<device>_<date>.json` and print a table."""
    path = save(op, header(), limits=limits, results=records)
    for record in records:
        if "not_measured" in record:
            print(f"{record['name']:58s} {record['not_measured'][:60]}")
            continue
        fraction = record.get("fraction_of_copy")
        share = f"{fraction:6.1%} of copy" if fraction else " " * 14
        peak = record["peak_bytes"] / 2**30
        print(f"{record['name']:58s} {record['median_ms']:9.3f} ms {share} {peak:6.2f} GiB")
    return path
