"""What a number depends on: the header of every file of results."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fgrpo_kernels import _C

Record = dict[str, Any]
SOURCE = Path(__file__).parents[2]
PACKAGES = ("torch", "triton")


def header(device: str = "cpu", packages: Iterable[str] = ()) -> Record:
    """The machine and its load, versions, commit and time, as of now.

    Args:
        device: torch's name of what is measured
        packages: names of distributions whose versions matter beside torch's and Triton's; None for one that is missing
    """
    described = _cpu() if device == "cpu" else _gpu(device)
    return {
        **described,
        "cores": _cores(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: version(package) for package in (*PACKAGES, *packages)},
        **_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> Record:
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    names = re.findall(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    name = names[0] if names else platform.processor() or platform.machine()
    simd = torch.backends.cpu.get_cpu_capability()
    # A virtual machine's "AMD EPYC" is any of four generations.
    return {"device": f"{name}, {_cores()} cores, {simd}", "simd": simd, "simd_levels": _C.simd_levels()}


def _gpu(device: str) -> Record:
    module: Any = torch.get_device_module(device)
    properties = module.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_bytes": properties.total_memory,
        "multiprocessors": getattr(properties, "multi_processor_count", None),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> Record:
    """$COMMIT, for a copy without its history; else what git says of this file's repository, if there is one."""
    if named := os.environ.get("COMMIT"):
        return {"commit": named}
    commit = _git("rev-parse", "HEAD") if (SOURCE / "csrc").is_dir() else None
    if commit is None:
        return {"commit": None}
    return {"commit": commit, "modified": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=SOURCE, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
