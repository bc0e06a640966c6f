"""Our apps without Flower's processes: the bits of one process, what outlives a run, what a node keeps to itself."""

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from local_grid import LocalGrid

from fgrpo.engines.flower.init import init
from fgrpo.engines.flower.server_app import play
from fgrpo.engines.flower.setup import node_config, run_config
from fgrpo.engines.flower.store import Store
from fgrpo.errors import ConfigError, RunError
from fgrpo.experiment import train
from fgrpo.records import Evaluation, Report, RoundSummary
from fgrpo.run_folder import RunFolder
from fgrpo.settings import make_config

KEYS = {
    "rounds": 3,
    "rollout.prompts_per_step": 2,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 4,
    "train.local_steps": 1,
    "train.lr": 1e-3,
    "evaluation.prompts": 4,
    "aggregation.gain": "heldout",
    "aggregation.gain_prompts": 3,
    "engine.threads": 1,
}
DIGITS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
CLIENTS = {
    "sums": {"tasks": [{"reasoning_gym": "chain_sum", "params": DIGITS}], "reward_scale": 0.1},
    "gcd": {"tasks": [{"reasoning_gym": "gcd", "params": {"min_value": 1, "max_value": 40}}]},
}


class Unwatched:
    def stage(self, who, stage):
        pass

    def record(self, record):
        pass


def federation(folder, keys):
    """Two simulated nodes with a client each."""
    (folder / "simulation.yaml").write_text(json.dumps({"clients": CLIENTS}))
    grid = LocalGrid()
    for number in range(2):
        grid.add(10 + number, keys, {"partition-id": number, "num-partitions": 2}, folder)
    return grid


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    options = [f"--{key}={value}" for key, value in KEYS.items()]
    config = make_config({"clients": CLIENTS}, [*options, "--engine.workers=0", f"--output_dir={folder}/run"], "here")
    return train(config, lambda *_: nullcontext(Unwatched()))


def test_a_run_is_that_of_one_process_to_the_bit(one_process, tmp_path):
    keys = {**KEYS, "output_dir": str(tmp_path / "run")}
    there = play(federation(tmp_path, keys), keys)
    assert torch.equal(there.load().params_P, one_process.load().params_P)
    ours, theirs = (
        {(type(one), one.client, one.round): one for one in run.records() if isinstance(one, Evaluation | Report)}
        for run in (there, one_process)
    )
    assert ours.keys() == theirs.keys()
    for key, one in theirs.items():
        assert replace(ours[key], seconds={}) == replace(one, seconds={}) if key[0] is Report else ours[key] == one
        assert key[0] is Evaluation or one.heldout.count == 3
    assert (there.path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("lost", [pytest.param(0, id="before-the-first-round"), pytest.param(2, id="within-the-third")])
def test_a_server_that_dies_within_a_round_goes_on_to_the_same_bits(one_process, tmp_path, lost):
    """The nodes have trained for the round that was lost; what they kept of it must not count."""
    keys = {**KEYS, "output_dir": str(tmp_path / "run")}
    grid = federation(tmp_path, keys)

    class Killed(Exception):  # noqa: N818
        pass

    commit = RunFolder.commit

    def dying(folder, state, *rest):
        if state.round == lost + 1:
            raise Killed
        return commit(folder, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "commit", dying)
        with pytest.raises(Killed):
            play(grid, keys)
    assert RunFolder(keys["output_dir"]).rounds()[-1] == lost
    resumed = play(grid, keys)
    assert torch.equal(resumed.load().params_P, one_process.load().params_P)
    summaries = [one for one in resumed.records() if isinstance(one, RoundSummary)]
    assert [summary.round for summary in summaries] == [1, 2, 3]
    assert not any(summary.quarantined for summary in summaries)


def test_what_a_node_keeps_is_that_of_the_last_round_which_was_taken(tmp_path):
    store = Store(tmp_path / "node")
    assert store.model() is None
    for number in (1, 2, 3):
        residuals = store.residuals("run", {"a": number - 1})
        assert len(residuals) == (number > 1)
        residuals.keep("a", torch.full((4,), float(number)), number)
    assert store.residuals("run", {"a": 2})["a"].tolist() == [2.0] * 4
    assert not store.residuals("run", {"a": 0, "b": 0})
    assert not store.residuals("another run", {"a": 2})
    store.forget("run", "a", 2)
    assert [path.parent.name for path in (tmp_path / "node").rglob("a.safetensors")] == ["0002"]
    store.hold(torch.ones(4))
    (tmp_path / "node" / "model.safetensors").write_bytes(b"a disk that lost it")
    assert store.model() is None


def secret_reward(completion, answer):
    raise ValueError("the patient's name is Ada")


def test_a_failure_leaves_its_text_at_the_node(tmp_path, caplog):
    keys = {**KEYS, "output_dir": str(tmp_path / "run"), "rewards.on_error": "raise"}
    grid = federation(tmp_path, keys)
    secret = {"gcd": {"tasks": [{**CLIENTS["gcd"]["tasks"][0], "reward": f"{__name__}:secret_reward"}]}}
    (tmp_path / "simulation.yaml").write_text(json.dumps({"clients": {"sums": CLIENTS["sums"], **secret}}))
    run = play(grid, {**keys, "rounds": 1})
    (summary,) = [one for one in run.records() if isinstance(one, RoundSummary)]
    assert summary.quarantined == {"gcd": "TaskError at its node, whose log says more"}
    assert "Ada" in caplog.text
    told = [reply.content["text"]["json"] for reply in grid.answered]
    assert told
    assert not [text for text in told if "Ada" in text or "chain_sum" in text]


def test_the_clients_of_a_run_are_the_nodes_own(tmp_path):
    good = {"output_dir": "~/somewhere", "train.lr": 1e-4, "train.model_dropout": True, "flower.deadline": "null"}
    config = run_config(good)
    assert (config.train.lr, config.train.model_dropout, config.flower.deadline) == (1e-4, True, None)
    assert not config.output_dir.startswith("~")
    for more, reason in (
        ({"clients.a.tasks": "[{reasoning_gym: gcd}]"}, "belong to the nodes"),
        ({"partition.task.dataset": "x"}, "belong to the nodes"),
        ({"engine.workers": 2}, "one machine"),
        ({"train.lrr": 1}, "unknown key"),
        ({"output_dir": "null"}, "output_dir is missing"),
    ):
        with pytest.raises(ConfigError, match=reason):
            run_config({**good, **more})
    file = tmp_path / "owner.yaml"
    file.write_text(json.dumps({"clients": CLIENTS}))
    config, folder = node_config(good, {"clients": str(file)}, tmp_path)
    assert list(config.clients) == ["sums", "gcd"]
    assert folder == tmp_path / "owner.state"
    file.write_text("rounds: 3\n")
    with pytest.raises(ConfigError, match="expected the one key clients:"):
        node_config(good, {"clients": str(file)}, tmp_path)
    with pytest.raises(ConfigError, match="whose data is here"):
        node_config(good, {}, tmp_path)


def test_an_app_is_written_once_and_asks_for_nothing_more(tmp_path):
    written = init(tmp_path / "My App")
    assert [path.name for path in written] == ["client_app.py", "pyproject.toml", "server_app.py", "simulation.yaml"]
    assert 'name = "my-app"' in (tmp_path / "My App" / "pyproject.toml").read_text()
    with pytest.raises(RunError, match="is not empty"):
        init(tmp_path / "My App")
    with pytest.raises(RunError, match="begin with a letter"):
        init(tmp_path / "1")


def test_a_nodes_process_for_a_message_does_without_pytorch():
    code = "import sys, fgrpo.engines.flower.client_app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
