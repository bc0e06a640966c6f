"""Wheels for a GPU machine without a network: what the GPU tests and benchmarks import beyond torch and Triton.

    python scripts/collect_wheels.py wheels               # here: downloads them, and checks that they suffice
    pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site     # there

The check installs them and imports what is used, in an empty environment that has torch and Triton, with what they
need, as links to what is installed here.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Rivals, and what the loop, the tests and the build import. Their needs are found where they are installed: here.
WANTED = (
    *("trl", "liger-kernel", "transformers", "peft", "datasets", "safetensors", "jsonargparse", "reasoning-gym"),
    *("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "pybind11", "cmake", "ninja", "rich", "jinja2"),
)
# They are there, in versions that go with the driver; what only they need is there too.
GIVEN = ("torch", "triton")
IMPORTS = (
    "trl.kernels.chunked_logprob, trl.trainer.utils",
    "liger_kernel.transformers.grpo_loss, liger_kernel.chunked_loss",
    "transformers, peft, datasets, dill, multiprocess, jsonargparse, reasoning_gym",
    "pytest, xdist, hypothesis, pybind11",
)


def needed(wanted: Sequence[str], besides: Sequence[str] = ()) -> dict[str, metadata.Distribution | None]:
    """The wanted packages and all that they need, as they are installed here; None for what is not."""
    found: dict[str, metadata.Distribution | None] = {}
    left = [Requirement(name) for name in wanted]
    while left:
        need = left.pop()
        name = canonicalize_name(need.name)
        if name in found or name in besides:
            continue
        try:
            found[name] = distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found[name] = None
            continue
        extras = need.extras or {""}
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras):
                left.append(requirement)
    return found


def pins() -> list[str]:
    """What to carry, in the versions that are installed here; without one, the newest."""
    found = needed(WANTED, besides=GIVEN).items()
    return sorted(name if package is None else f"{name}=={package.version}" for name, package in found)


def download(folder: Path, python: str) -> None:
    """The wheels for Linux and that Python; of what is published without one, a wheel that is built here."""
    platforms = [f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014", "1")]
    chosen = [word for platform in platforms for word in ("--platform", platform)]
    there = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *chosen]
    left = pins()
    while left:
        done = pip("download", "--dest", str(folder), *there, *left)
        if done.returncode == 0:
            return
        missing = re.findall(r"No matching distribution found for (\S+)", done.stderr)
        if not missing:
            raise SystemExit(f"collect_wheels: pip cannot download\n{done.stderr[-2000:]}")
        for package in missing:
            built = pip("wheel", "--wheel-dir", str(folder), package)
            print(f"{package}: {'built here' if built.returncode == 0 else 'none can be built; left out'}")
        left = [package for package in left if package not in missing]


def pip(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", *arguments]
    return subprocess.run(line, capture_output=True, text=True)


def check(folder: Path) -> list[str]:
    """What does not import from these wheels, each in one line; empty if they suffice."""
    with tempfile.TemporaryDirectory() as root:
        python, site = environment_there(Path(root) / "there"), Path(root) / "site"
        wheels = [str(wheel) for wheel in sorted(folder.glob("*.whl"))]
        done = pip("install", "--no-index", "--no-compile", "--target", str(site), *wheels)
        if done.returncode != 0:
            return [f"pip cannot install the wheels: {done.stderr.strip().splitlines()[-1]}"]
        failures = []
        for modules in IMPORTS:
            command, path = [str(python), "-c", f"import {modules}"], os.environ | {"PYTHONPATH": str(site)}
            done = subprocess.run(command, cwd=root, env=path, capture_output=True, text=True)
            if done.returncode != 0:
                failures.append(f"{modules}: {done.stderr.strip().splitlines()[-1]}")
    return failures


def environment_there(folder: Path) -> Path:
    """Make an environment with nothing but what is given on the GPU machine; return its Python."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in needed(GIVEN).values():
        files = [] if package is None else package.files or []
        for name in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (site / name).symlink_to(str(package.locate_file(name)))
    return folder / "bin" / "python"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="there, as 3.12")
    parser.add_argument("--only-check", action="store_true", help="with the wheels that lie there")
    options = parser.parse_args()
    if not options.only_check:
        download(options.folder, options.python)
    size = sum(wheel.stat().st_size for wheel in options.folder.glob("*.whl")) / 2**20
    print(f"{options.folder}: {len(list(options.folder.glob('*.whl')))} wheels, {size:.0f} MiB")
    if options.python != f"{sys.version_info.major}.{sys.version_info.minor}":
        print(f"not checked: this is another Python than {options.python}; run --only-check with that one and torch")
        return 0
    failures = check(options.folder)
    print(*(failures or ["all imports work"]), sep="\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
