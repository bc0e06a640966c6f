"""One process at a time is at work in a folder, and one that was killed holds nothing."""

import signal
import subprocess
import sys

import pytest

from fgrpo.errors import RunError
from fgrpo.lock import held

HOLD = """
import sys
from pathlib import Path
from fgrpo.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_until_that_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process is at work in it"), held(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
    with held(tmp_path):
        pass


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"), held(tmp_path / "file"):
        pass
