"""Watching a command and all that it starts."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import process_tree
import pytest
from process_tree import Samples, watch

# A child that holds 200 MB and keeps a core busy for half a second of its time, and an orphan that would never end.
BUSY = "held = b'x' * 200_000_000; import time\nwhile time.process_time() < 0.5: pass"
FAMILY = f"""
import subprocess, sys
orphan = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
subprocess.run([sys.executable, "-c", orphan])
subprocess.run([sys.executable, "-c", {BUSY!r}])
sys.exit(3)
"""


@pytest.fixture
def bystander():
    """A process of ours that the watch has no business with."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def watched(code, log, **options):
    return watch([sys.executable, "-c", code], dict(os.environ), log, interval=0.02, **{"timeout": 60.0} | options)


def test_a_family_of_processes(tmp_path, bystander):
    log = tmp_path / "log"
    status, started, samples = watched(FAMILY, log)
    assert status == 3
    assert started <= samples.moments[0]
    assert sorted(samples.moments) == samples.moments
    assert sorted(samples.cpu_s) == samples.cpu_s
    assert samples.cpu_s[-1] >= 0.4
    assert 200e6 < max(samples.memory_bytes) < 400e6
    assert not alive(int(log.read_text()))
    assert bystander.poll() is None


def test_a_command_that_does_not_end(tmp_path):
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0 s"):
        watched("import time; time.sleep(600)", tmp_path / "log", timeout=0.3)
    assert time.monotonic() - start < 30


def test_a_process_that_has_just_ended_holds_nothing():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert process_tree._private_bytes(process.pid) == process_tree._proportional_bytes(process.pid) == 0


def test_a_kernel_that_gives_no_orphans(tmp_path, monkeypatch):
    refusing = SimpleNamespace(prctl=lambda *_: -1)
    monkeypatch.setattr(process_tree.ctypes, "CDLL", lambda *_, **__: refusing)
    with pytest.raises(OSError, match="cannot adopt the processes that a command leaves behind"):
        watched("", tmp_path / "log")


def test_between_samples():
    samples = Samples(moments=[0.0, 1.0, 2.0, 4.0], cpu_s=[0.0, 1.0, 3.0, 3.0], memory_bytes=[5, 7, 6, 9])
    assert samples.cpu_between(0.5, 1.5) == 1.5
    assert samples.cpu_between(1.0, 4.0) == 2.0
    assert samples.peak_between(1.0, 3.0) == 7
    assert samples.peak_between(2.0, 4.0) == 9
    assert samples.peak_between(2.1, 2.2) == 9
    assert samples.peak_between(0.1, 0.2) == 7
