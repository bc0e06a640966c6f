"""Everything that needs a GPU, in steps: `make gpu`, `make gpu-sweep`, `make gpu-train`.

    python benchmarks/gpu.py test measure --rounds 5

A step that fails stops no other; the exit status is the worst one's. Options go to every benchmark. Each step but
`measure` ends within six minutes, and so does `measure` in its parts; what was measured is on disk at every moment.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TESTS = (
    *("test_gpu.py", "test_gpu_head.py", "test_options.py", "test_registration.py", "test_candidates.py"),
    *("test_delta_codec.py", "test_delta_codec_gpu.py", "test_gpu_loop.py", "test_gpu_benchmarks.py"),
)
OPS = ("grpo_loss", "token_logprobs", "group_advantages", "linear_grpo_loss", "device_codec")
# A test's time is mostly that of compiling its kernels, on one core.
WORKERS = int(os.environ.get("GPU_TEST_WORKERS", "8"))


def run(*arguments: str) -> int:
    print("+", *arguments, flush=True)
    return subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode


def test(_: list[str]) -> int:
    at_once = ["-n", str(WORKERS)] if WORKERS and importlib.util.find_spec("xdist") else []
    files = [f"tests/kernels/{name}" for name in TESTS]
    return run("-m", "pytest", "--durations=15", "-rs", *at_once, *files)


def measure(options: list[str]) -> int:
    return max(run("-m", "fgrpo_kernels.bench", op, "--device", "cuda", *options) for op in OPS)


def sweep(options: list[str]) -> int:
    return run("benchmarks/gpu_sweep.py", *options)


def train(options: list[str]) -> int:
    return run("benchmarks/gpu_train.py", *options)


STEPS: dict[str, Callable[[list[str]], int]] = {"test": test, "measure": measure, "sweep": sweep, "train": train}


def main(arguments: list[str]) -> int:
    steps = [STEPS[name] for name in arguments if name in STEPS]
    options = [word for word in arguments if word not in STEPS]
    if not steps:
        sys.exit(f"benchmarks/gpu.py: expected one or more of {', '.join(STEPS)}, got {' '.join(arguments) or 'none'}")
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no GPU on this machine; without one, `make test` checks the kernels")
    return max(step(options) for step in steps)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
