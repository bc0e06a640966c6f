"""The test bed: verdicts that teach nothing or the opposite, and clients that lie or send noise."""

from dataclasses import replace

import pytest
import torch

from fgrpo.checks import check
from fgrpo.client.owners import make_clients
from fgrpo.client.policy import Policy
from fgrpo.client.round import client_round
from fgrpo.client.tasks.diagnostic import Coin
from fgrpo.config import AggregationConfig, ClientConfig, DiagnosticConfig, FaultConfig, PartitionConfig, TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.records import Completion, Example
from fgrpo.settings import read_config
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import flatten
from fgrpo.wire.payload import unpack
from fgrpo_kernels.codec import decode


def tosses(coin, prompts, answers):
    return coin([Example(p, "", {}) for p in prompts], [Completion(a) for a in answers])


def test_coins_do_not_look_at_completions_and_fall_the_same_way_again():
    prompts, answers = [f"{i % 200} + 1 =" for i in range(4000)], [str(i % 3) for i in range(4000)]
    coin = Coin(0.3, seed=1)
    found = tosses(coin, prompts, answers)
    assert found == tosses(coin, prompts, answers)
    assert found != tosses(Coin(0.3, seed=2), prompts, answers)
    for said in ("0", "1", "2"):
        mine = [x for x, answer in zip(found, answers, strict=True) if answer == said]
        assert sum(mine) / len(mine) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / len(mine)) ** 0.5)
    same = tosses(coin, ["one prompt"] * 400, ["42"] * 400)
    assert sum(same) / 400 == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 400) ** 0.5), "equal completions toss apart"
    beside = tosses(coin, ["another", *["one prompt"] * 400], ["42"] * 401)
    assert beside[1:] == same, "other prompts of the batch change nothing"
    for p in (0.0, 1.0):
        assert set(tosses(Coin(p, 1), prompts, answers)) == {p}


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "{i} =", "answer": "{i}"}}\n' for i in range(20)))
    return str(file)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [("saturated", [1.0, 1.0]), ("hopeless", [0.0, 0.0]), ("negated", [0.0, 1.0])],
)
def test_a_verdict_takes_the_place_of_a_tasks_own(small_config, rows, reward, expected):
    """For a verifier and for named rewards: the first answer is right, the second is wrong."""
    diagnostic = DiagnosticConfig(reward)
    tasks = [replace(small_config.clients["gcd"].tasks[0], diagnostic=diagnostic)]
    tasks += [TaskConfig(dataset=rows, reward=reward, diagnostic=diagnostic) for reward in ("exact_match",)]
    for task in tasks:
        (client,) = make_clients(replace(small_config, clients={"a": ClientConfig([task])}))
        (question,) = client.draw(0, 1)
        scores = client.scores([question] * 2, [Completion(question.example.answer), Completion("no")])
        assert scores.values == expected
        assert scores.correct == [value == 1.0 for value in expected]


def without_what_is_inflated(report):
    return replace(report, seconds={}, reward_mean=0.0, heldout=replace(report.heldout, mean=0.0))


@pytest.mark.parametrize("fault", [{"inflate_reward": 2.0}, {"inflate_reward": 2.0, "noise": 1e-3}])
def test_a_client_lies_or_sends_noise(small_config, fault):
    codec = replace(small_config.codec, codec="none", error_feedback=False)
    config = replace(small_config, codec=codec, train=replace(small_config.train, local_steps=1))
    config = replace(config, aggregation=AggregationConfig(gain="heldout"))
    owners = {**config.clients, "sums": replace(config.clients["sums"], fault=FaultConfig(**fault))}
    policy, found = Policy.load(config), []
    start_P = flatten(policy.model)
    for one in (config, replace(config, clients=owners)):
        for client in make_clients(one):
            reply = client_round(client, policy, start_P, None, 3, one, Stopwatch())
            found.append((reply.report, decode(unpack(reply.payload)[1])))
    (honest, honest_P), (other, other_P), (liar, liar_P), (same, same_P) = found
    assert replace(same, seconds={}) == replace(other, seconds={})
    assert torch.equal(same_P, other_P)
    factor = 8.0 if "inflate_reward" in fault else 1.0
    assert liar.reward_mean == factor * honest.reward_mean
    assert honest.heldout.count == 8
    assert liar.heldout.mean == factor * honest.heldout.mean > 0
    assert without_what_is_inflated(liar) == without_what_is_inflated(honest)
    assert torch.equal(liar_P, honest_P) != ("noise" in fault)
    if "noise" in fault:
        assert liar_P.std().item() == pytest.approx(1e-3, rel=0.01)


def test_both_are_read_from_a_file_and_set_by_options(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "clients: {a: {tasks: [{reasoning_gym: gcd, diagnostic: {reward: coin, p: 0.3}}], fault: {noise: 1e-3}}}"
    )
    config = read_config(file, ["--clients.a.fault.inflate_reward", "1.5"])
    assert config.clients["a"].tasks[0].diagnostic == DiagnosticConfig("coin", 0.3)
    assert config.clients["a"].fault == FaultConfig(1.5, 1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fault": FaultConfig()}, r"clients\.a\.fault: set inflate_reward, noise or both"),
        ({"fault": FaultConfig(noise=-1.0)}, r"clients\.a\.fault\.noise: got -1\.0"),
        ({"fault": FaultConfig(inflate_reward=float("nan"))}, r"clients\.a\.fault\.inflate_reward: got nan"),
        ({"tasks": [TaskConfig("gcd", diagnostic=DiagnosticConfig("coin", 1.5))]}, r"clients\.a\.tasks: diagnostic\.p"),
    ],
)
def test_what_makes_no_sense_is_refused(small_config, change, words):
    client = ClientConfig(**{"tasks": [TaskConfig("gcd")], **change})
    with pytest.raises(ConfigError, match=words):
        check(replace(small_config, clients={"a": client}))


def test_a_partition_takes_no_diagnostic(small_config):
    task = TaskConfig(dataset="x.csv", diagnostic=DiagnosticConfig("saturated"))
    with pytest.raises(ConfigError, match=r"partition\.task\.diagnostic"):
        check(replace(small_config, clients={}, partition=PartitionConfig(task)))
