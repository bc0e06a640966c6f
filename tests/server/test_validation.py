"""A bad reply is quarantined with its reason; the others go on."""

import math
from dataclasses import replace

import pytest
import torch

from fgrpo.config import Config
from fgrpo.records import Failure, Reply, Report, Score
from fgrpo.server.limits import Limits
from fgrpo.server.validation import sort_replies
from fgrpo.wire.parameters import Manifest, fingerprint
from fgrpo.wire.payload import Header, pack
from fgrpo_kernels.codec import encode

MANIFEST = Manifest(("w",), ((10, 10),))
BASE = fingerprint(torch.zeros(100))


def reply(sender, **header):
    report = Report(sender, 2, 64, 500, 0.5, 0.1, 8.0, 0.0, {}, {})
    made = Header(sender, 2, MANIFEST.hash, BASE)
    return Reply(sender, report, pack(encode(torch.ones(100)), replace(made, **header)))


def settle(replies, clients=("a", "b", "c")):
    return sort_replies(replies, clients, 2, MANIFEST, BASE)


def test_order_of_arrival_does_not_matter():
    forward, _ = settle([reply("a"), reply("b"), reply("c")])
    backward, _ = settle([reply("c"), reply("b"), reply("a")])
    assert [x.report.client for x in forward] == [x.report.client for x in backward] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(Failure("b", "out of memory"), "out of memory", id="failed"),
        pytest.param(replace(reply("b"), payload=b"garbage"), "not a safetensors file", id="garbage"),
        pytest.param(reply("b", round=1), "round is 1, expected 2", id="late"),
        pytest.param(reply("b", base="0"), "base is '0'", id="other-base"),
        pytest.param(reply("b", client="c"), "client is 'c'", id="somebody-elses"),
        pytest.param(reply("z"), "nobody asked", id="uninvited"),
        *(
            pytest.param(
                replace(reply("b"), report=replace(reply("b").report, **change)),
                next(iter(change)),
                id=f"report-{value}",
            )
            for change, value in [
                ({"reward_mean": math.nan}, "nan"),
                ({"reward_std": math.inf}, "inf"),
                ({"reward_std": -1.0}, "negative-std"),
                ({"sequences": 0}, "no-sequences"),
                ({"round": 1}, "old"),
            ]
        ),
    ],
)
def test_a_bad_reply_harms_only_itself(bad, reason):
    accepted, quarantined = settle([reply("a"), bad, reply("c")])
    assert [x.report.client for x in accepted] == ["a", "c"]
    assert list(quarantined) == [bad.client]
    assert reason in quarantined[bad.client]


def test_the_first_of_two_replies_counts():
    accepted, quarantined = settle([reply("a"), reply("a")])
    assert len(accepted) == 1
    assert "second reply" in quarantined["a"]


@pytest.mark.parametrize(
    "report",
    [
        pytest.param({"sequences": 10**400}, id="sequences-10^400"),
        pytest.param({"sequences": 1.5}, id="sequences-float"),
        pytest.param({"sequences": float("nan")}, id="sequences-nan"),
        pytest.param({"sequences": "64"}, id="sequences-text"),
        pytest.param({"sequences": True}, id="sequences-bool"),
        pytest.param({"tokens": -1}, id="tokens-negative"),
        pytest.param({"reward_mean": 10**400}, id="reward_mean-10^400"),
        pytest.param({"reward_mean": "0.5"}, id="reward_mean-text"),
        pytest.param({"reward_std": None}, id="reward_std-none"),
        pytest.param({"completion_length": float("inf")}, id="completion_length-inf"),
        pytest.param({"degenerate": "x" * 10000}, id="degenerate-long-text"),
        pytest.param({"metrics": {"kl": "high"}}, id="metrics-text"),
        pytest.param({"metrics": [1.0]}, id="metrics-list"),
        pytest.param({"seconds": {1: 1.0}}, id="seconds-number-for-a-name"),
        pytest.param({"heldout": 0.5}, id="heldout-number"),
        pytest.param({"heldout": {"mean": 0.5}}, id="heldout-mapping"),
        pytest.param({"heldout": Score(math.nan, 0.1, 8)}, id="heldout-nan"),
        pytest.param({"heldout": Score(0.5, -0.1, 8)}, id="heldout-negative-std"),
        pytest.param({"heldout": Score(0.5, math.inf, 8)}, id="heldout-infinite-std"),
        pytest.param({"heldout": Score(0.5, 0.1, 0)}, id="heldout-of-nothing"),
        pytest.param({"heldout": Score("0.5", 0.1, 8)}, id="heldout-text"),
    ],
)
def test_any_report_harms_only_its_own_reply(report):
    bad = replace(reply("b"), report=replace(reply("b").report, **report))
    accepted, quarantined = settle([reply("a"), bad])
    assert [x.report.client for x in accepted] == ["a"]
    assert quarantined["b"].startswith("report: ")
    assert next(iter(report)) in quarantined["b"]
    assert len(quarantined["b"]) < 300


def test_a_held_out_score_that_is_asked_for_must_be_there():
    told = replace(reply("a"), report=replace(reply("a").report, heldout=Score(0.5, 0.1, 8)))
    accepted, quarantined = sort_replies([told, reply("b")], "ab", 2, MANIFEST, BASE, heldout=True)
    assert [x.report.heldout for x in accepted] == [Score(0.5, 0.1, 8)]
    assert quarantined == {"b": "report: no heldout, expected the score that aggregation.gain heldout asks for"}


@pytest.mark.parametrize(
    ("score", "field"),
    [(Score(2e6, 0.1, 8), "heldout.mean"), (Score(0.5, 2e6, 8), "heldout.std"), (Score(0.5, 0.1, 33), "heldout.count")],
)
def test_a_held_out_score_out_of_this_world_harms_only_its_own_reply(score, field):
    bad = replace(reply("b"), report=replace(reply("b").report, heldout=score))
    limits = Limits.of(Config(), 100)
    accepted, quarantined = sort_replies([reply("a"), bad], "ab", 2, MANIFEST, BASE, replace(limits, norm=math.inf))
    assert [x.report.client for x in accepted] == ["a"]
    assert quarantined["b"].startswith(f"report: {field} is ")
