"""Real processes on loopback: TLS, keys, and an end to any of them that is not the end of the run.

The tests go through one federation in order: each starts from what the one before has left.
"""

import json
import math
import signal
import time
from contextlib import nullcontext

import pytest
import torch
from deployment import Deployment, make_certificates, make_key, until

from fgrpo.experiment import train
from fgrpo.records import Evaluation, RoundSummary
from fgrpo.run_folder import RunFolder
from fgrpo.settings import make_config

pytestmark = pytest.mark.slow

KEYS = {
    "rounds": 2,
    "rollout.prompts_per_step": 16,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 6,
    "train.local_steps": 2,
    "train.updates_per_rollout": 2,
    "train.lr": 5e-4,
    "evaluation.prompts": 64,
    "engine.threads": 1,
    "flower.min_clients": 3,
}
CLIENTS = {
    "adder": ("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    "divisor": ("gcd", {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 40}),
    "speller": ("spell_backward", {"min_word_len": 3, "max_word_len": 4}),
}


def owned(name):
    task, params = CLIENTS[name]
    return {name: {"tasks": [{"reasoning_gym": task, "params": params}]}}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    federation = Deployment(tmp_path_factory.mktemp("federation"), **KEYS)
    try:
        federation.start_link()
        for name in CLIENTS:
            federation.register(name)
            federation.start_node(name, owned(name))
        yield federation
    finally:
        federation.close()


class Unwatched:
    def stage(self, who, stage):
        pass

    def record(self, record):
        pass


def in_one_process(folder, rounds):
    """Play the same run without a network."""
    clients = {name: client for owner in CLIENTS for name, client in owned(owner).items()}
    keys = {key: value for key, value in KEYS.items() if not key.startswith("flower")}
    keys |= {"rounds": rounds, "engine.workers": 0, "output_dir": folder}
    options = [f"--{key}={value}" for key, value in keys.items()]
    return train(make_config({"clients": clients}, options, "here"), lambda *_: nullcontext(Unwatched()))


def test_the_run_is_that_of_one_process_to_the_bit(federation, tmp_path):
    federation.start_run()
    here = in_one_process(tmp_path / "run", rounds=2)
    federation.finish(rounds=2)
    there = RunFolder(federation.run)
    assert torch.equal(there.load().params_P, here.load().params_P)
    evaluations = [record for record in there.records() if isinstance(record, Evaluation)]
    assert evaluations == sorted(
        (record for record in here.records() if isinstance(record, Evaluation)), key=lambda one: (one.round, one.client)
    )
    before, after = (sum(one.accuracy for one in evaluations if one.round == number) for number in (0, 2))
    assert after > before
    assert (federation.run / "model" / "model.safetensors").is_file()


def test_bytes_both_ways_are_told(federation):
    rounds = [record for record in RunFolder(federation.run).records() if isinstance(record, RoundSummary)]
    whole = rounds[0].dense_bytes
    for client in CLIENTS:
        assert rounds[0].downlink_bytes[client] == whole  # brought for the evaluation before the first round
        assert all(0 < summary.downlink_bytes[client] < whole for summary in rounds[1:])
        assert all(0 < 7 * summary.uplink_bytes[client] < whole for summary in rounds)
    assert "Downlink" in (federation.run / "report" / "index.html").read_text()


def test_no_prompt_is_on_the_server(federation):
    """Its folder and its database name neither a task, nor one's settings, nor a node's file."""
    told = {word for name, params in CLIENTS.values() for word in (name, *params)}
    told = {word.encode() for word in told if len(word) > 3}  # three bytes in a row may be any payload's
    for path in [*federation.run.rglob("*"), federation.folder / "link.db"]:
        if path.is_file() and "model" not in path.parts:
            content = path.read_bytes()
            assert not [word for word in told if word in content], path
            assert b"owners/" not in content, path


def test_strangers_stay_outside(federation):
    other = federation.folder / "other"
    make_certificates(other)
    federation.register("late")
    stranger = make_key(federation.folder / "keys" / "stranger")
    federation.start_node("unknown", owned("adder"), key=stranger)
    once = ["--max-retries", "1"]
    federation.start_node("late", owned("adder"), tls=["--root-certificates", str(other / "ca.pem"), *once])
    federation.start_node("plain", owned("adder"), key=federation.folder / "none", tls=["--insecure", *once])
    for name in ("unknown", "late", "plain"):
        until(lambda name=name: federation.has_ended(name), lambda name=name: federation.log(name))
    listed = json.loads(federation.flwr("supernode", "list", "here", "--format", "json").stdout)
    assert sorted(node["status"] for node in listed["nodes"]) == ["online"] * 3 + ["registered"]


def test_a_server_killed_within_a_round_plays_it_again_to_the_same_bits(federation, tmp_path):
    federation.start_run(rounds=3)
    until(lambda: "train message" in federation.log("speller").partition("ROUND 3]")[2], lambda: federation.log("link"))
    federation.kill("link")
    assert federation.rounds()[-1] == 2
    federation.start_link()
    time.sleep(1)
    federation.start_run(rounds=3)
    federation.finish(rounds=3)
    here, there = in_one_process(tmp_path / "run", rounds=3), RunFolder(federation.run)
    assert torch.equal(there.load().params_P, here.load().params_P)
    *_, last = [record for record in there.records() if isinstance(record, RoundSummary)]
    assert last.weights.keys() == CLIENTS.keys()


def test_nobodys_end_is_the_end_of_the_run(federation):
    """A node is killed, another loses its network, the server is killed: the run goes on with those that are left."""
    federation.start_run(rounds=5, **{"flower.deadline": 30.0})
    ends = {"speller": federation.kill, "divisor": lambda name: federation.signal(name, signal.SIGSTOP)}

    def everybody_ended():
        """Each as its own message comes: nodes fetch them at moments of their own, and soon have an answer."""
        for name in [name for name in ends if "train message" in federation.log(name).partition("ROUND 4]")[2]]:
            ends.pop(name)(name)
        return not ends

    until(everybody_ended, lambda: federation.log("link"))
    until(lambda: 4 in federation.rounds(), lambda: federation.log("link"))
    federation.kill("link")
    federation.signal("divisor", signal.SIGCONT)
    federation.start_link()
    time.sleep(1)
    federation.start_run(rounds=5, **{"flower.deadline": 15.0})
    federation.finish(rounds=5)
    folder = RunFolder(federation.run)
    first, last = [record for record in folder.records() if isinstance(record, RoundSummary) and record.round > 3]
    assert first.quarantined["speller"].startswith("no answer within")
    assert first.quarantined["divisor"].startswith("no answer within")
    assert first.weights.keys() == {"adder"}
    assert "speller" in last.quarantined
    assert last.weights
    assert math.isfinite(folder.load().params_P.norm())
