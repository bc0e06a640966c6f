"""The packages that contenders come from."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

from fgrpo_kernels.bench.machine import version


class Package(NamedTuple):
    """How it is imported, and by what name it is installed."""

    module: str
    distribution: str


PACKAGES = {
    "trl": Package("trl", "trl"),
    "liger": Package("liger_kernel", "liger-kernel"),
    "quack": Package("quack", "quack-kernels"),
    "piquant": Package("piquant", "pypiquant"),
    "bitsandbytes": Package("bitsandbytes", "bitsandbytes"),
    "flower": Package("flwr", "flwr"),
    "zstd": Package("zstandard", "zstandard"),
}
INSIDE = ("eager", "compile", "numpy", "fbgemm", "float32")  # with torch
DISTRIBUTIONS = tuple(package.distribution for package in PACKAGES.values())


def whereabouts(name: str) -> str:
    """A contender's version, or how to get it; what comes with torch or this package is always there."""
    if name not in PACKAGES:
        return "here"
    module, distribution = PACKAGES[name]
    try:
        found = importlib.util.find_spec(module) is not None
    except ValueError:  # another of that name is half imported
        found = False
    if not found:
        return how_to_get(name)
    return version(distribution) or "here"


def how_to_get(name: str, missing: str | None = None) -> str:
    """Why a contender is not there: its package, or a module that the package imports in its turn."""
    package = PACKAGES.get(name)
    if package is None or (missing is not None and missing.partition(".")[0] != package.module):
        return f"not installed: {missing}"
    return f"not installed: pip install {package.distribution}"
