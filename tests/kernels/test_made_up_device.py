"""What is run on a GPU, run word for word on the made-up one: no line of it is run there for the first time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo_kernels.jit import HAS_TRITON, INTERPRETED

if not HAS_TRITON or INTERPRETED:
    pytest.skip("starts Triton's interpreter itself, once", allow_module_level=True)

ROOT = Path(__file__).parents[2]
OPS = {"grpo_loss", "token_logprobs", "group_advantages", "linear_grpo_loss", "device_codec"}
MADE_UP = ROOT / "tests" / "made_up_device"


def make(target, options, out):
    """`make <target>` on the made-up device, without building what is built; the results by file."""
    environment = os.environ | {
        "PYTHONPATH": str(MADE_UP),
        "PYTEST_ADDOPTS": "-m gpu -p no:cacheprovider",
        "GPU_TEST_WORKERS": "0",
        "OUT": str(out),
        "COMMIT": "made up",
    }
    command = ["make", "-o", "gpu-build", target, f"PYTHON={sys.executable}", f"BENCH={options}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.name.partition("_Made")[0]: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert {content["header"]["commit"] for content in found.values()} == {"made up"}
    return found


def test_pytest_benchmark(tmp_path):
    """The benchmarks' cases as tests; one's are run."""
    out = tmp_path / "out.json"
    sizes = {"DEVICE": "cuda", "ROWS": "2", "PARAMETERS": "1024", "ROUNDS": "1"}
    # A process that takes itself for a worker of pytest-xdist times nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = alone | sizes | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(MADE_UP)])}
    files = [f"benchmarks/bench_{op}.py" for op in OPS]
    chosen = "token_logprobs and not backward and not vocabulary and not rows and not trl"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files, "-k", chosen, "--benchmark-json", out]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    timed = {record["name"]: record["extra_info"] for record in json.loads(out.read_text())["benchmarks"]}
    assert timed["test_token_logprobs[forward: eager]"].keys() >= {"times_ours"}


def test_gpu(tmp_path):
    found = make("gpu", "--rows 2 --parameters 1024 --rounds 1", tmp_path)
    assert found.keys() == OPS
    for content in found.values():
        reasons = [record.get("not_measured", "") for record in content["results"]]
        assert all(reason.startswith("not installed") for reason in reasons if reason), reasons
        assert any("median_s" in record for record in content["results"])


def test_gpu_sweep(tmp_path):
    found = make("gpu-sweep", "--rows 2 --vocabulary 300 --hidden 16 --rounds 1", tmp_path)
    assert len(found["sweep"]["winners"]) == 5
    assert all("median_s" in record for record in found["sweep"]["results"])


def test_gpu_train(tmp_path):
    found = make("gpu-train", "--models tiny-lora --steps 1 --prompts 1 --tokens 3", tmp_path)
    (record,) = found["train"]["results"]
    assert {"rollout", "reward", "train", "encode"} == record["stages_s"].keys()
