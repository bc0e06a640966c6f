"""Robust combination inside a round: a client that sends a huge delta, and what the settings refuse."""

from dataclasses import replace

import pytest
import torch

from fgrpo.checks import check
from fgrpo.config import AggregationConfig, ClientConfig, Config, PartitionConfig, TaskConfig
from fgrpo.errors import ConfigError, RunError
from fgrpo.federation import play_round
from fgrpo.records import Reply, Report, RoundSummary, ServerState, from_json, to_json
from fgrpo.server.combine import combine
from fgrpo.show.summary import RunSummary
from fgrpo.show.tables import client_table
from fgrpo.wire.parameters import Manifest, fingerprint
from fgrpo.wire.payload import Header, pack
from fgrpo_kernels.codec import encode

SIZE = 4000
HONEST = ("ann", "bob", "cid", "dee")
TRUTH_P = torch.randn(SIZE, generator=torch.Generator().manual_seed(0)) * 1e-3
LIE_P = -1e6 * TRUTH_P


def report(client):
    return Report(client, 1, 10 + len(client), 100, 1.0, 0.5, 10.0, 0.0, {}, {})


class LiarAmongFive:
    """Four clients send nearly the same delta; the fifth sends its opposite, a billion times as long."""

    clients = (*HONEST, "mallory")
    manifest = Manifest(("weight",), ((SIZE,),))
    downlink_bytes = None

    def train(self, state, clients, observer):
        noise = torch.Generator().manual_seed(1)
        replies = []
        for client in clients:
            delta_P = TRUTH_P + 1e-5 * torch.randn(SIZE, generator=noise) if client in HONEST else LIE_P
            header = Header(client, state.round + 1, self.manifest.hash, fingerprint(state.params_P))
            replies.append(Reply(client, report(client), pack(encode(delta_P, codec="int8"), header)))
        return replies, {}


class Nobody:
    def stage(self, who, stage):
        pass


def step(aggregation):
    start = ServerState.initial(torch.zeros(SIZE))
    state, summary, _ = play_round(start, LiarAmongFive(), Config(aggregation=aggregation), Nobody())
    return state.params_P, summary


def direction(step_P):
    return torch.cosine_similarity(step_P, TRUTH_P, dim=0).item()


def test_a_weighted_mean_is_carried_away():
    step_P, summary = step(AggregationConfig("fedavg"))
    assert direction(step_P) < -0.99
    assert summary.update_norm > 1000
    assert (summary.robust, summary.delta_norms) == ("none", {})


@pytest.mark.parametrize(
    "aggregation",
    [
        pytest.param(AggregationConfig(robust="median"), id="median"),
        pytest.param(AggregationConfig(robust="trimmed_mean", trim=1), id="trimmed_mean"),
    ],
)
def test_a_liar_is_without_effect_per_parameter(aggregation):
    step_P, summary = step(aggregation)
    torch.testing.assert_close(step_P, TRUTH_P, rtol=0.1, atol=1e-4)
    assert summary.robust == aggregation.robust
    assert summary.weights == dict.fromkeys((*HONEST, "mallory"), 0.2), (
        "no rule's weights: every client counts the same"
    )


def test_clipping_bounds_what_a_liar_can_do():
    bound = 1.2 * TRUTH_P.norm().item()
    step_P, summary = step(AggregationConfig("uniform", robust="clipped_mean", max_norm=bound))
    assert direction(step_P) > 0.99
    assert summary.update_norm < bound
    assert summary.delta_norms["mallory"] == pytest.approx(LIE_P.norm().item(), rel=1e-2)
    assert summary.delta_norms["ann"] == pytest.approx(TRUTH_P.norm().item(), rel=1e-2)


def test_clipping_keeps_the_rules_weights():
    _, plain = step(AggregationConfig("fedavg"))
    _, clipped = step(AggregationConfig("fedavg", robust="clipped_mean", max_norm=1.0))
    assert clipped.weights == plain.weights
    assert len(set(clipped.weights.values())) > 1


def test_too_few_replies_to_trim():
    deltas = {client: encode(TRUTH_P) for client in ("a", "b")}
    with pytest.raises(RunError, match=r"aggregation.trim: 1 at each end leave nothing of 2 usable replies"):
        combine(deltas, {"a": 0.5, "b": 0.5}, AggregationConfig(robust="trimmed_mean", trim=1))


def test_too_many_replies_to_sort():
    deltas = {str(k): encode(TRUTH_P[:100]) for k in range(65)}
    with pytest.raises(RunError, match="median sorts at most 64 clients, got 65 replies"):
        combine(deltas, dict.fromkeys(deltas, 1 / 65), AggregationConfig(robust="median"))


def test_records_of_earlier_runs_are_read():
    _, summary = step(AggregationConfig(robust="clipped_mean", max_norm=1.0))
    assert from_json(to_json(summary)) == summary
    line = to_json(summary)
    del line["robust"], line["delta_norms"]
    old = from_json(line)
    assert isinstance(old, RoundSummary)
    assert (old.robust, old.delta_norms) == ("none", {})


@pytest.mark.parametrize(
    ("aggregation", "words"),
    [
        (AggregationConfig("fedavg"), None),
        (AggregationConfig(robust="median"), "median: per parameter, without the rule's weights"),
        (AggregationConfig(robust="trimmed_mean", trim=1), "trimmed_mean: per parameter, without the rule's weights"),
        (AggregationConfig(robust="clipped_mean", max_norm=1.0), "clipped to aggregation.max_norm"),
    ],
    ids=lambda value: getattr(value, "robust", ""),
)
def test_the_report_says_where_weights_do_not_apply(aggregation, words):
    _, summary = step(aggregation)
    note = client_table(RunSummary.of([*map(report, LiarAmongFive.clients), summary])).note
    assert words in note if words else "clipped" not in note and "without" not in note


FOUR = Config(clients={name: ClientConfig([TaskConfig()]) for name in HONEST})


@pytest.mark.parametrize(
    ("aggregation", "message"),
    [
        pytest.param(AggregationConfig(robust="clipped_mean"), "aggregation.max_norm: .*needs it", id="no-max-norm"),
        pytest.param(AggregationConfig(robust="trimmed_mean"), "aggregation.trim: .*needs it", id="no-trim"),
        pytest.param(AggregationConfig(max_norm=1.0), "max_norm: only .*clipped_mean reads it", id="unread-max-norm"),
        pytest.param(AggregationConfig(robust="median", trim=1), "trim: only .*got robust median", id="unread-trim"),
        pytest.param(
            AggregationConfig(robust="clipped_mean", max_norm=0.0), "max_norm: got 0.0, .*more than 0", id="max-norm-0"
        ),
        pytest.param(AggregationConfig(robust="trimmed_mean", trim=0), "trim: got 0, expected at least 1", id="trim-0"),
        pytest.param(
            AggregationConfig(robust="trimmed_mean", trim=2), "trim: 2 at each end leave nothing of 4", id="trim-all"
        ),
    ],
)
def test_settings_name_what_is_missing_or_unread(aggregation, message):
    with pytest.raises(ConfigError, match=message):
        check(replace(FOUR, aggregation=aggregation))


def test_settings_refuse_more_clients_than_can_be_sorted():
    partition = PartitionConfig(TaskConfig(), clients=65)
    with pytest.raises(ConfigError, match="median sorts at most 64 clients, got 65"):
        check(Config(partition=partition, aggregation=AggregationConfig(robust="median")))
    check(Config(partition=replace(partition, clients=64), aggregation=AggregationConfig(robust="median")))
    check(replace(FOUR, aggregation=AggregationConfig(robust="trimmed_mean", trim=1)))
