"""What `make gpu-sweep` and `make gpu-train` do besides timing: what fails, and models that are large elsewhere."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rival_packages import provide
from sizes import MADE_UP

from fgrpo_kernels.bench import ops
from fgrpo_kernels.bench.case import Options, WrongResultError, package_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

SMALL_QWEN = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def results(main, folder, *arguments):
    """The exit status, and what was written."""
    status = main(list(arguments))
    (path,) = folder.glob("*.json")
    return status, json.loads(path.read_text())


@pytest.fixture
def out(monkeypatch, tmp_path):
    monkeypatch.setenv("OUT", str(tmp_path))
    return tmp_path


@pytest.fixture
def sweep(monkeypatch):
    """One that tries little, in few rows."""
    import gpu_sweep

    first = {kind: dict(list(choices.items())[:2]) for kind, choices in gpu_sweep.CANDIDATES.items()}
    monkeypatch.setattr(gpu_sweep, "CANDIDATES", first)
    return lambda out, *options: results(
        gpu_sweep.main, out, "--rows", "2", "--vocabulary", "50", "--rounds", "1", *options
    )


def test_a_variant_that_fails_is_named_and_stops_no_other(sweep, out, monkeypatch, capsys):
    import gpu_sweep

    scan = gpu_sweep.token_logprobs
    answers = iter([RuntimeError("no registers left"), None])

    def scan_that_fails_at_first(*arguments):
        if error := next(answers, None):
            raise error
        return scan(*arguments)

    monkeypatch.setattr(gpu_sweep, "token_logprobs", scan_that_fails_at_first)
    status, content = sweep(out, "--kinds", "scan")
    failed, timed = content["results"]
    assert (status, failed["not_measured"]) == (1, "RuntimeError: no registers left")
    assert content["winners"] == [f"{timed['name']} takes 1.000 of {timed['choice']}'s time"]
    assert "no registers left" in capsys.readouterr().out


def test_a_wrong_variant_is_not_timed(sweep, out, monkeypatch):
    import gpu_sweep

    right = gpu_sweep.token_logprobs
    monkeypatch.setattr(
        gpu_sweep,
        "token_logprobs",
        lambda *arguments: right(*arguments)._replace(entropy=torch.zeros(12, device="cuda")),
    )
    status, content = sweep(out, "--kinds", "scan")
    assert status == 1
    assert all(
        record["not_measured"].startswith("wrong result: result 1: relative error") for record in content["results"]
    )
    assert content["winners"] == ["nothing was timed"]


def test_every_model_trains_and_one_that_fails_loses_no_others_figures(out, monkeypatch):
    import gpu_train

    from fgrpo.engines.workplace import Workplace
    from fgrpo.records import Failure

    train = Workplace.train

    def train_but_not_the_plain_one(self, client, *rest):
        return train(self, client, *rest) if self.config.lora else Failure(client, "why")

    monkeypatch.setattr(gpu_train, "QWEN", gpu_train.QWEN | SMALL_QWEN)
    monkeypatch.setattr(Workplace, "train", train_but_not_the_plain_one)
    status, content = results(
        gpu_train.main, out, "--models", "tiny,qwen2.5-0.5b", "--steps", "1", "--prompts", "1", "--tokens", "2"
    )
    failed, trained = content["results"]
    assert (status, failed) == (1, {"name": "tiny", "not_measured": "RuntimeError: why"})
    assert {"rollout", "reward", "train", "encode"} == trained["stages_s"].keys()
    assert trained["busy_share"] >= 0


RIVALS = {
    "grpo_loss": {"liger": "liger-kernel"},
    "linear_grpo_loss": {"liger": "liger-kernel", "quack": "quack-kernels"},
    "device_codec": {"bitsandbytes": "bitsandbytes"},
}


@pytest.mark.skipif(not MADE_UP, reason="make gpu-measure checks the real packages, as far as they are installed")
@pytest.mark.parametrize("op", RIVALS)
def test_rivals_are_right(op, monkeypatch):
    for distribution in RIVALS[op].values():
        provide(monkeypatch, distribution, real=False)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    checked = set()
    for case in ops.cases(op, Options(device="cuda", rows=2, parameters=256)):
        for name, make in case.contenders.items():
            if package_of(name) in RIVALS[op]:
                case.check(make)
                checked.add(package_of(name))
    assert checked == RIVALS[op].keys()


@pytest.mark.parametrize("name", ["encode int4 nearest, float32", "decode int4"])
def test_wrong_bytes_are_found(name):
    """Those of another delta."""
    (case,) = (case for case in ops.cases("device_codec", Options(device="cuda", parameters=256)) if case.name == name)
    ours = case.contenders["fgrpo"]
    with pytest.raises(WrongResultError, match="differ from the C"):
        case.check(lambda delta: ours(delta._replace(new=-delta.new)))
