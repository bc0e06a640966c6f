"""Whole rounds in this process."""

import gc
import json
import re
import sys
import tracemalloc
from dataclasses import replace

import pytest
import torch

from fgrpo.client.owners import Owners
from fgrpo.client.policy import Policy
from fgrpo.config import (
    ClientConfig,
    CodecConfig,
    Config,
    EvaluationConfig,
    LoraConfig,
    ParticipationConfig,
    RolloutConfig,
    TaskConfig,
    TrainConfig,
)
from fgrpo.engines.in_process import InProcess
from fgrpo.engines.workplace import Workplace
from fgrpo.errors import RunError
from fgrpo.federation import play, play_round
from fgrpo.records import Evaluation, Report, RoundSummary, ServerState, to_json
from fgrpo.residuals import Residuals
from fgrpo.run_folder import RunFolder
from fgrpo.show.report import write_report
from fgrpo.show.terminal import print_summary
from fgrpo.wire.parameters import flatten
from fgrpo_kernels.codec import decode


class Watcher:
    def __init__(self):
        self.stages, self.records = [], []

    def stage(self, who, stage):
        self.stages.append((who, stage))

    def record(self, record):
        self.records.append(record)


def nan_reward(completion, answer):
    return float("nan")


BROKEN = ClientConfig([TaskConfig(reasoning_gym="chain_sum", reward=f"{__name__}:nan_reward")])


def engine(policy, config):
    return InProcess(Workplace(config, Owners(config), policy))


def test_the_step_is_the_weighted_mean_of_the_deltas(policy, small_config):
    start = ServerState.initial(flatten(policy.model))
    before_P, watcher = start.params_P.clone(), Watcher()
    state, summary, accepted = play_round(start, engine(policy, small_config), small_config, watcher)
    assert torch.equal(start.params_P, before_P)
    expected_P = sum(summary.weights[a.report.client] * decode(a.delta) for a in accepted)
    torch.testing.assert_close(state.params_P - before_P, expected_P, atol=1e-7, rtol=1e-3)
    assert summary.update_norm == pytest.approx(expected_P.norm().item(), rel=1e-4)
    assert sum(summary.weights.values()) == pytest.approx(1)
    assert summary.dense_bytes == 4 * len(before_P)
    assert all(7 * sent <= summary.dense_bytes for sent in summary.uplink_bytes.values())
    assert state.history.keys() == state.residuals.keys() == {"sums", "gcd"}
    assert ("gcd", "rollout") in watcher.stages
    assert ("server", "aggregate") in watcher.stages


def test_without_error_feedback_no_residual_is_kept(policy, small_config):
    config = replace(small_config, codec=CodecConfig("int8", rounding="stochastic", error_feedback=False))
    start = ServerState.initial(flatten(policy.model))
    state, _, _ = play_round(start, engine(policy, config), config, Watcher())
    assert not state.residuals
    again, _, _ = play_round(start, engine(policy, config), config, Watcher())
    assert torch.equal(state.params_P, again.params_P), "stochastic rounding is seeded too"


def test_error_feedback_crosses_rounds(policy, small_config):
    first, _, _ = play_round(
        ServerState.initial(flatten(policy.model)), engine(policy, small_config), small_config, Watcher()
    )
    forgetful = replace(first, residuals=Residuals())
    ends = [play_round(s, engine(policy, small_config), small_config, Watcher()) for s in (first, forgetful)]
    with_past, without = ([decode(a.delta) for a in accepted] for _, _, accepted in ends)
    for client, one, other in zip(("gcd", "sums"), with_past, without, strict=True):
        # Training is the same; only what the first round's rounding lost comes on top.
        lost_P = first.residuals[client]
        assert (one - other).dot(lost_P) > 0.5 * lost_P.dot(lost_P)


def test_a_client_whose_rewards_are_nan_is_quarantined(policy, small_config):
    config = replace(small_config, clients={**small_config.clients, "broken": BROKEN})
    start = ServerState.initial(flatten(policy.model))
    state, summary, accepted = play_round(start, engine(policy, config), config, Watcher())
    assert [a.report.client for a in accepted] == ["gcd", "sums"]
    assert "returned nan" in summary.quarantined["broken"]
    assert "broken" not in state.residuals
    assert "broken" not in state.history


def test_a_round_without_a_usable_reply_stops_with_the_reasons(policy, small_config):
    config = replace(small_config, clients={"broken": BROKEN})
    start = ServerState.initial(flatten(policy.model))
    with pytest.raises(RunError, match=r"round 1: no client gave a usable reply \(broken: .*returned nan"):
        play_round(start, engine(policy, config), config, Watcher())


def test_a_round_that_asked_only_failing_clients_changes_nothing_and_the_next_goes_on(policy, small_config, tmp_path):
    config = replace(
        small_config,
        clients={**small_config.clients, "broken": BROKEN},
        participation=ParticipationConfig(clients_per_round=1),
        rounds=8,
        rollout=RolloutConfig(prompts_per_step=1, group_size=2, max_new_tokens=2),
        evaluation=EvaluationConfig(prompts=1),
    )
    watcher, folder = Watcher(), RunFolder.create(tmp_path / "run", "")
    start_P = flatten(policy.model)
    state = play(folder.initial(start_P), engine(policy, config), config, folder, watcher)
    summaries = [record for record in watcher.records if isinstance(record, RoundSummary)]
    lost = [summary for summary in summaries if summary.quarantined]
    assert 0 < len(lost) < state.round == len(summaries) == 8
    assert all((summary.update_norm, summary.weights) == (0, {}) for summary in lost)
    assert state.history.keys() <= {"sums", "gcd"}
    assert "returned nan" in (write_report(folder)).read_text()
    print_summary(folder.records())


@pytest.mark.parametrize(("every", "evaluated"), [(0, [0, 2]), (1, [0, 1, 2])])
def test_play_evaluates_when_due_and_keeps_every_record(policy, small_config, tmp_path, every, evaluated):
    config = replace(small_config, evaluation=replace(small_config.evaluation, every=every))
    watcher, folder = Watcher(), RunFolder.create(tmp_path / "run", "")
    state = play(ServerState.initial(flatten(policy.model)), engine(policy, config), config, folder, watcher)
    assert state.round == 2
    assert list(folder.records()) == watcher.records
    kinds = {
        kind: [r.round for r in watcher.records if isinstance(r, kind)] for kind in (Report, Evaluation, RoundSummary)
    }
    assert kinds[RoundSummary] == [1, 2]
    assert kinds[Report] == [1, 1, 2, 2]
    assert kinds[Evaluation] == [n for n in evaluated for _ in range(2)]
    assert folder.load().round == 2


class Stop(BaseException):
    """What no `except Exception` catches."""


def stops(completion, answer):
    raise Stop("at once")


def exits(completion, answer):
    sys.exit(0)


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        pytest.param(stops, r"Stop: at once; its traceback is in the run's log", id="no-exception"),
        pytest.param(exits, r"none of 32 completions got a reward: reward .*:exits' failed .*SystemExit: 0", id="exit"),
    ],
)
def test_whatever_ends_a_clients_part_ends_nobody_elses(policy, small_config, tmp_path, reward, reason):
    troubled = ClientConfig([TaskConfig(reasoning_gym="chain_sum", reward=f"{__name__}:{reward.__name__}")])
    config = replace(small_config, clients={**small_config.clients, "troubled": troubled}, rounds=1)
    folder, watcher = RunFolder.create(tmp_path / "run", ""), Watcher()
    with folder.log():
        state = play(folder.initial(flatten(policy.model)), engine(policy, config), config, folder, watcher)
    (summary,) = (record for record in watcher.records if isinstance(record, RoundSummary))
    assert state.history.keys() == {"sums", "gcd"}
    assert re.search(reason, summary.quarantined["troubled"])
    log = (folder.path / "log.txt").read_text()
    assert "round 1, client troubled: " in log
    assert f"in {reward.__name__}\n" in log, "the traceback leads to the reward function"


def test_an_interrupt_is_nobodys_trouble(policy, small_config):
    interrupts = ClientConfig([TaskConfig(reasoning_gym="chain_sum", reward=f"{__name__}:{interrupted.__name__}")])
    config = replace(small_config, clients={**small_config.clients, "a": interrupts})
    with pytest.raises(KeyboardInterrupt):
        play_round(ServerState.initial(flatten(policy.model)), engine(policy, config), config, Watcher())


def interrupted(completion, answer):
    raise KeyboardInterrupt


def test_a_run_without_trouble_has_no_log(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "")
    with folder.log():
        pass
    assert not (folder.path / "log.txt").exists()


def live_vectors(size):
    """Count the float32 vectors [P] that are in memory."""
    gc.collect()
    return sum(type(thing) is torch.Tensor and thing.numel() == size for thing in gc.get_objects())


def test_a_thousand_clients_of_whom_sixteen_take_part(tmp_path):
    """Memory and disk follow those who take part; a client that does not costs about its name."""
    task = TaskConfig(reasoning_gym="chain_sum", params={"min_terms": 2, "max_terms": 2})
    config = Config(
        clients={f"client-{k}": ClientConfig([task]) for k in range(1000)},
        lora=LoraConfig(rank=1),
        participation=ParticipationConfig(clients_per_round=16),
        rollout=RolloutConfig(prompts_per_step=1, group_size=2, max_new_tokens=2),
        train=TrainConfig(local_steps=1),
        evaluation=EvaluationConfig(prompts=2, clients=3),
        rounds=4,
    )
    tracemalloc.start()
    owners = Owners(config)
    for name in list(owners)[:100]:
        owners[name].draw(0, 1)
    bytes_per_client = tracemalloc.get_traced_memory()[0] / 1000
    tracemalloc.stop()
    assert bytes_per_client < 2000

    policy, watcher, folder = Policy.load(config), Watcher(), RunFolder.create(tmp_path / "run", "")
    start, members = folder.initial(flatten(policy.model)), InProcess(Workplace(config, owners, policy))
    size, before = len(start.params_P), live_vectors(len(start.params_P))
    state = play(start, members, config, folder, watcher)

    heard = {client for record in watcher.records if isinstance(record, RoundSummary) for client in record.weights}
    assert 48 < len(heard) <= 64, "16 in each of four rounds, few of them twice"
    assert state.residuals.keys() == state.history.keys() == heard
    assert live_vectors(size) <= before + 2, "the state's own; no residual stays in memory"
    files = [file for file in folder.path.rglob("*") if file.is_file()]
    residuals = {file.stem for file in files if file.is_relative_to(folder.path / "residuals")}
    assert residuals == heard
    per_client, states = 4 * size * len(heard), 2 * 4 * size
    payloads = 2 * 16 * (4 * size / 7 + 1000)
    described = members.describe()
    assert [client.client for client in described] == list(owners)
    lines = 2 * sum(len(json.dumps(to_json(client))) + 1 for client in described)  # once more in metrics.jsonl
    most = per_client + states + payloads + lines + 1000 * (len(heard) + 200)
    assert sum(file.stat().st_size for file in files) < most

    resumed = play(RunFolder.open(folder.path).load(), members, replace(config, rounds=5), folder, watcher)
    unbroken, _, _ = play_round(state, members, config, Watcher())
    assert torch.equal(resumed.params_P, unbroken.params_P)
    evaluated = [record.client for record in watcher.records if isinstance(record, Evaluation)]
    assert evaluated == 3 * list(owners.evaluated), "the same sample, before, after, and once it went on"
