"""The C++ unit tests of robust.h and sparse_delta.h, without Python, under two sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "csrc-tests"  # kept, so that only the first run compiles


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs cmake and ninja")
@pytest.mark.parametrize(("target", "last_line"), [("test_robust", "4 passed"), ("test_sparse_delta", "3 passed")])
def test_core_under_sanitizers(target: str, last_line: str) -> None:
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DFGRPO_TESTS=ON", "-DFGRPO_SANITIZE=address,undefined"]
    commands = [
        ["cmake", "-S", str(ROOT / "csrc"), "-B", str(BUILD), "-G", "Ninja", *options],
        ["cmake", "--build", str(BUILD), "--target", target],
        [str(BUILD / target)],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    assert f"{last_line}, 0 failed" in done.stdout
