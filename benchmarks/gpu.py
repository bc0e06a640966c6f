"""Everything that needs an NVIDIA GPU, in one run of a few minutes: the tests, then the benchmarks.

    python benchmarks/gpu.py

Nothing is measured if a test fails. Results go to benchmarks/results, or to $OUT where it is set.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TESTS = [
    *("test_gpu.py", "test_gpu_head.py", "test_options.py", "test_registration.py"),
    *("test_delta_codec.py", "test_delta_codec_gpu.py"),
]
BENCHMARKS = [
    *("bench_group_advantages.py", "bench_token_logprobs.py", "bench_grpo_loss.py", "bench_linear_grpo_loss.py"),
    "bench_triton_codec.py",
]


def main() -> int:
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no GPU on this machine; without one, `make test` checks the kernels")
    tests = subprocess.run([sys.executable, "-m", "pytest", *(f"tests/kernels/{name}" for name in TESTS)], cwd=ROOT)
    if tests.returncode != 0:
        return tests.returncode
    codes = [subprocess.run([sys.executable, ROOT / "benchmarks" / name], cwd=ROOT).returncode for name in BENCHMARKS]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
