"""The contenders of the round benchmark: the rival trains on our prompts and rewards, and carries nothing along."""

from dataclasses import replace

import needs_trl  # noqa: F401 - skips without TRL 1.16
import pytest
import torch
from rivals import fgrpo_loop, plain_averaging
from rivals.record import Task
from rivals.trl_client import TrlClients

from fgrpo.client.prompts import render
from fgrpo.config import TrainConfig
from fgrpo.errors import ConfigError
from fgrpo.records import Completion
from fgrpo.settings import to_yaml

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own


@pytest.fixture(scope="module")
def rival(small_config):
    return TrlClients(small_config, threads=torch.get_num_threads())


@pytest.fixture(scope="module")
def task(small_config, tmp_path_factory):
    file = tmp_path_factory.mktemp("rivals") / "config.yaml"
    file.write_text(to_yaml(small_config))
    return Task(str(file), ("--evaluation.every", "0"), cores=torch.get_num_threads())


@pytest.fixture
def seen(rival, monkeypatch):
    """The prompts' tokens and the rewards as they are in TRL's trainer."""
    seen = {"prompts": [], "rewards": []}
    trainer = rival._trainer
    tokenize, calculate = trainer._tokenize_prompts, trainer._calculate_rewards

    def tokenized(prompts):
        result = tokenize(prompts)
        seen["prompts"] += result[0]
        return result

    def rewarded(inputs, prompts, completions, completion_ids):
        result = calculate(inputs, prompts, completions, completion_ids)
        seen["rewards"].append((completion_ids, result[:, 0]))
        return result

    monkeypatch.setattr(trainer, "_tokenize_prompts", tokenized)
    monkeypatch.setattr(trainer, "_calculate_rewards", rewarded)
    return seen


def copied(rival):
    return {name: p.clone() for name, p in rival.parameters().items()}


def test_prompts_and_rewards_are_ours(rival, small_config, seen):
    group, tokenizer, client = small_config.rollout.group_size, rival._tokenizer, rival.clients[1]
    work = rival.train(1, copied(rival), round_number=2)
    questions = client.draw(8, 8)  # the second round's: two steps of four prompts
    texts = [render(tokenizer, q.example.prompt, None) for q in questions for _ in range(group)]
    assert seen["prompts"] == tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = [ids for batch, _ in seen["rewards"] for ids in batch]
    rewards = torch.cat([rewards for _, rewards in seen["rewards"]])
    completions = tokenizer.batch_decode(ids, skip_special_tokens=True)
    answered = [questions[i // group] for i in range(len(completions))]
    ours = client.scores(answered, [Completion(text) for text in completions]).values
    assert rewards.tolist() == pytest.approx([client.reward_scale * value for value in ours])
    assert len(set(ours)) > 1
    by_group = rewards.view(-1, group)
    assert work.informative == (by_group != by_group[:, :1]).any(dim=1).sum()
    assert (work.sequences, work.groups, work.tokens) == (8 * group, 8, sum(map(len, ids)))
    assert min(work.rollout_s, work.reward_s, work.train_s) > 0


def test_a_turn_leaves_nothing_behind(rival, small_config):
    fresh = TrlClients(small_config, threads=torch.get_num_threads())
    start = copied(fresh)
    fresh.train(0, start, round_number=1)
    rival.train(1, start, round_number=3)
    rival.train(0, start, round_number=1)
    moved = {name: p for name, p in fresh.parameters().items() if not torch.equal(p, start[name])}
    assert len(moved) > len(start) / 2
    for name, p in rival.parameters().items():
        torch.testing.assert_close(p, fresh.parameters()[name], rtol=0, atol=0)


def test_system_prompt(small_config):
    told = replace(small_config, rollout=replace(small_config.rollout, system_prompt="Be brief."))
    rival = TrlClients(told, threads=torch.get_num_threads())
    ids, *_ = rival._trainer._tokenize_prompts([rival._prompt("1 + 1")])
    text = render(rival._tokenizer, "1 + 1", "Be brief.")
    assert ids == [rival._tokenizer(text, add_special_tokens=False)["input_ids"]]
    rival._tokenizer.chat_template = None
    assert rival._prompt("1 + 1") == "Be brief.\n\n1 + 1"


@pytest.mark.parametrize("option", [{"baseline": "leave_one_out"}, {"beta": 0.1}, {"entropy_coef": 0.1}], ids=str)
def test_what_trl_would_train_otherwise_is_refused(small_config, option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        TrlClients(replace(small_config, train=TrainConfig(**option)), threads=1)


@pytest.fixture
def flower(monkeypatch):
    """The contender on Flower, its one actor in this process."""
    pytest.importorskip("flwr", reason="install fgrpo[flower]")
    import simulation
    from rivals import flower_simulation

    monkeypatch.setattr(flower_simulation, "run_simulation", simulation.run_simulation)
    flower_simulation._actor.cache_clear()
    return flower_simulation


def test_flowers_clients_play_the_same(flower, task, monkeypatch):
    """As without a framework, once they all have come."""
    there_at_first = iter([1])
    monkeypatch.setattr("simulation.Grid.get_node_ids", lambda grid: list(grid.nodes)[: next(there_at_first, None)])
    once = replace(task, overrides=(*task.overrides, "--rounds", "1"))
    played, plain = flower.play(once), plain_averaging.play(once)
    (there,), (here,) = played.rounds, plain.rounds
    assert (there.work.sequences, there.work.tokens) == (here.work.sequences, here.work.tokens)
    assert here.uplink_bytes < there.uplink_bytes < 1.01 * here.uplink_bytes  # each array's shape goes along
    assert there.stages.keys() == {"clients", "aggregate"}
    assert sum(there.stages.values()) == pytest.approx(there.seconds)
    assert played.after.keys() == plain.after.keys()
    assert flower._actor.cache_info().misses == 1  # and goes on with its model from one message to the next


def test_a_client_that_fails_ends_the_simulation(flower, task, monkeypatch, capsys):
    """At once: the server's thread would wait for it for ever."""

    class Ended(BaseException):
        pass

    def broken(task):
        raise RuntimeError("no memory")

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(flower, "_actor", broken)
    monkeypatch.setattr(flower.os, "_exit", end)
    with pytest.raises(Ended, match="1"):
        flower.play(task)
    assert "a client failed: no memory" in capsys.readouterr().err


@pytest.mark.parametrize("contender", [fgrpo_loop, plain_averaging], ids=["fgrpo", "trl+plain"])
def test_a_contender_plays_its_rounds(contender, task, rival):
    played, parameters = contender.play(task), sum(p.numel() for p in rival.parameters().values())
    assert len(played.rounds) == 2
    assert set(played.after) == {"sums", "gcd"}
    for number, one in enumerate(played.rounds):
        assert one.start < one.end
        assert one.end - one.start <= one.seconds < one.end - one.start + 5
        assert (one.work.sequences, one.work.groups) == (2 * 2 * 4 * 4, 2 * 2 * 4)
        assert 0 < one.work.informative <= one.work.groups
        assert number == 0 or one.start >= played.rounds[number - 1].end
    if contender is plain_averaging:
        assert one.uplink_bytes == 2 * 4 * parameters
    else:
        assert one.uplink_bytes < 2 * 4 * parameters / 7
        assert set(played.before) == set(played.after)
        assert played.ready < played.rounds[0].start
        assert set(one.stages) == {"clients", "validate", "aggregate", "server_step", "save"}
