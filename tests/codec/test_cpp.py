"""Builds the C++ core alone and runs its unit tests under the address and undefined-behaviour sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "csrc-tests"  # kept, so that only the first run compiles


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs cmake and ninja")
def test_core_under_sanitizers() -> None:
    options = [
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g",
        "-DFGRPO_TESTS=ON",
        "-DFGRPO_SANITIZE=address,undefined",
    ]
    commands = [
        ["cmake", "-S", str(ROOT / "csrc"), "-B", str(BUILD), "-G", "Ninja", *options],
        ["cmake", "--build", str(BUILD), "--target", "test_delta_codec"],
        [str(BUILD / "test_delta_codec")],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    assert "7 passed, 0 failed" in done.stdout
