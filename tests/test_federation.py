"""Whole rounds in this process."""

from dataclasses import replace

import pytest
import torch

from fgrpo.client.owners import make_clients
from fgrpo.config import ClientConfig, CodecConfig, TaskConfig
from fgrpo.engines.in_process import InProcess
from fgrpo.errors import RunError
from fgrpo.federation import play, play_round
from fgrpo.records import Evaluation, Report, RoundSummary, ServerState
from fgrpo.run_folder import RunFolder
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


def engine(policy, config, watcher):
    return InProcess(make_clients(config), policy, config, watcher)


def test_the_step_is_the_weighted_mean_of_the_deltas(policy, small_config):
    start = ServerState.initial(flatten(policy.model))
    before_P, watcher = start.params_P.clone(), Watcher()
    state, summary, accepted = play_round(start, engine(policy, small_config, watcher), small_config, watcher)
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
    state, _, _ = play_round(start, engine(policy, config, Watcher()), config, Watcher())
    assert not state.residuals
    again, _, _ = play_round(start, engine(policy, config, Watcher()), config, Watcher())
    assert torch.equal(state.params_P, again.params_P), "stochastic rounding is seeded too"


def test_error_feedback_crosses_rounds(policy, small_config):
    first, _, _ = play_round(
        ServerState.initial(flatten(policy.model)), engine(policy, small_config, Watcher()), small_config, Watcher()
    )
    forgetful = replace(first, residuals={})
    ends = [play_round(s, engine(policy, small_config, Watcher()), small_config, Watcher()) for s in (first, forgetful)]
    with_past, without = ([decode(a.delta) for a in accepted] for _, _, accepted in ends)
    for client, one, other in zip(("gcd", "sums"), with_past, without, strict=True):
        # Training is the same; only what the first round's rounding lost comes on top.
        lost_P = first.residuals[client]
        assert (one - other).dot(lost_P) > 0.5 * lost_P.dot(lost_P)


def test_a_client_whose_rewards_are_nan_is_quarantined(policy, small_config):
    config = replace(small_config, clients={**small_config.clients, "broken": BROKEN})
    start = ServerState.initial(flatten(policy.model))
    state, summary, accepted = play_round(start, engine(policy, config, Watcher()), config, Watcher())
    assert [a.report.client for a in accepted] == ["gcd", "sums"]
    assert "returned nan" in summary.quarantined["broken"]
    assert "broken" not in state.residuals
    assert "broken" not in state.history


def test_a_round_without_a_usable_reply_stops_with_the_reasons(policy, small_config):
    config = replace(small_config, clients={"broken": BROKEN})
    start = ServerState.initial(flatten(policy.model))
    with pytest.raises(RunError, match=r"round 1: no client gave a usable reply \(broken: .*returned nan"):
        play_round(start, engine(policy, config, Watcher()), config, Watcher())


@pytest.mark.parametrize(("every", "evaluated"), [(0, [0, 2]), (1, [0, 1, 2])])
def test_play_evaluates_when_due_and_keeps_every_record(policy, small_config, tmp_path, every, evaluated):
    config = replace(small_config, evaluation=replace(small_config.evaluation, every=every))
    watcher, folder = Watcher(), RunFolder.create(tmp_path / "run", "")
    state = play(ServerState.initial(flatten(policy.model)), engine(policy, config, watcher), config, folder, watcher)
    assert state.round == 2
    assert list(folder.records()) == watcher.records
    kinds = {
        kind: [r.round for r in watcher.records if isinstance(r, kind)] for kind in (Report, Evaluation, RoundSummary)
    }
    assert kinds[RoundSummary] == [1, 2]
    assert kinds[Report] == [1, 1, 2, 2]
    assert kinds[Evaluation] == [n for n in evaluated for _ in range(2)]
    assert folder.load().round == 2
