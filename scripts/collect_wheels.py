"""Wheels for a GPU machine without a network: what the GPU tests and benchmarks import beyond torch and Triton.

    python scripts/collect_wheels.py wheels               # here: downloads them, and checks that they suffice
    pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site     # there

The check installs them, and nothing else, beside a torch that is only looked up, and imports what is used.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

# Rivals and their needs, and those of the loop and of its tests; versions that are known to go together.
WANTED = (
    *("trl==1.16.0", "datasets==4.8.5", "dill==0.4.1", "multiprocess==0.70.19", "liger-kernel"),
    *(
        "transformers>=5,<6",
        "peft>=0.17",
        "safetensors>=0.5",
        "jsonargparse[signatures]>=4.49",
        "reasoning-gym==0.1.25",
    ),
    *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "pybind11>=2.13", "cmake>=3.22", "ninja"),
)
# They are there, in versions that go with the driver.
GIVEN = ("torch", "triton", "nvidia_", "cuda_")
IMPORTS = (
    "trl.kernels.chunked_logprob, trl.trainer.utils",
    "liger_kernel.transformers.grpo_loss, liger_kernel.chunked_loss",
    "transformers, peft, datasets, dill, multiprocess, jsonargparse, reasoning_gym",
    "pytest, xdist, hypothesis, pybind11",
)


def download(folder: Path, python: str) -> None:
    """All wheels with what they need, for Linux and that Python; then without what the machine has."""
    platforms = [f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014", "1")]
    chosen = [word for platform in platforms for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    subprocess.run([*pip, "--python-version", python, "--implementation", "cp", *chosen, *WANTED], check=True)
    for wheel in folder.glob("*.whl"):
        if wheel.name.startswith(GIVEN):
            wheel.unlink()


def check(folder: Path) -> list[str]:
    """What does not import from these wheels, each in one line; empty if they suffice."""
    with tempfile.TemporaryDirectory() as site:
        wheels = [str(wheel) for wheel in sorted(folder.glob("*.whl"))]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", site, *wheels], check=True)
        failures = []
        for modules in IMPORTS:
            # Isolated, so that nothing installed here helps out: torch alone is taken from where it is.
            code = f"import sys; sys.path[:0] = [{site!r}]; import {modules}"
            done = subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True)
            if done.returncode != 0:
                failures.append(f"{modules}: {done.stderr.strip().splitlines()[-1]}")
    return failures


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
