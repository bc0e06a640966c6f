"""Builds the C++ core alone, by the presets of csrc/CMakePresets.json, and runs its tests under sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"  # builds are kept in build/csrc-<preset>, so that only the first compiles
# Tools that pip installed beside this Python, then those of the system.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool, path=PATH) for tool in ("cmake", "ctest", "ninja")), reason="needs cmake and ninja"
)


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=CSRC, capture_output=True, text=True, env={**os.environ, "PATH": PATH})
    output = f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    if "ThreadSanitizer: unexpected memory mapping" in output:
        pytest.skip("this kernel places memory where this compiler's ThreadSanitizer cannot be")
    assert done.returncode == 0, output
    return done.stdout


@pytest.mark.parametrize(
    ("preset", "target", "tests"),
    [
        pytest.param("asan", "all", ".", id="asan"),
        pytest.param("tsan", "test_threads", "test_threads", id="tsan"),
    ],
)
def test_core_under_sanitizers(preset: str, target: str, tests: str) -> None:
    run("cmake", "--preset", preset)
    run("cmake", "--build", "--preset", preset, "--target", target)
    assert "100% tests passed" in run("ctest", "--preset", preset, "--tests-regex", tests, "--no-tests=error")
