"""The plug-in with two data-parallel processes (DDP over gloo): TRL's global normalisers and metrics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import needs_trl  # noqa: F401 - skips without TRL 1.16
import pytest

HERE = Path(__file__).parent


def test_two_processes(tmp_path):
    script = [str(HERE / "two_processes.py"), str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *script]
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    curves = json.loads(run.stdout.splitlines()[-1])
    assert len(curves) == 2
    for run_name, (theirs, ours) in curves.items():
        assert len(theirs) == 3
        assert max(log["grad_norm"] for log in theirs) > 1
        for x, y in zip(ours, theirs, strict=True):
            assert list(x) == list(y)
            for name, value in y.items():
                assert x[name] == pytest.approx(value, rel=2e-5, abs=2e-5), f"{run_name}, {name}"
