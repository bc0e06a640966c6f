"""What is set and decides nothing is told; what is read is not."""

from dataclasses import fields, replace

import pytest
import torch

from fgrpo.config import AggregationConfig, Config, ServerConfig
from fgrpo.records import ClientHistory, Report, Score
from fgrpo.server.aggregation import WEIGHTINGS, make_rule
from fgrpo.server.aggregation.gain import Trials
from fgrpo.server.geometry import Geometry
from fgrpo.server.unread import unread
from fgrpo_kernels.codec import encode

DELTAS = torch.tensor([[1.0, 0.2, 0.1], [-0.3, 1.0, 0.4]]).repeat(1, 32)
REPORTS = [
    Report("a", 3, 64, 900, 0.5, 0.3, 8.0, 0.1, {}, {}, rows=100, informative=58),
    Report("b", 3, 64, 200, 0.2, 0.1, 8.0, 0.5, {}, {}, rows=30, informative=32),
]
HISTORY = {"a": ClientHistory(0.3, 0.1, 2), "b": ClientHistory(0.25, 0.2, 2)}
PAYLOADS = {"a": encode(DELTAS[0]), "b": encode(DELTAS[1])}
GEOMETRY = Geometry(PAYLOADS, PAYLOADS)
OTHER = {"n_k": "tokens", "tau": 0.1, "clip": 0.5, "cap": 0.9, "floor": 0.2, "scale": "error", "smoothing": 0.4}


def lines(**changes):
    return list(unread(Config(aggregation=AggregationConfig(**changes))))


def test_defaults_say_nothing():
    assert not list(unread(Config()))
    for rule in WEIGHTINGS:
        assert not lines(rule=rule)


@pytest.mark.parametrize("rule", WEIGHTINGS)
@pytest.mark.parametrize("key", OTHER)
def test_a_key_is_told_where_the_rule_does_not_read_it(rule, key):
    told = lines(rule=rule, **{key: OTHER[key]})
    if key in WEIGHTINGS[rule].reads:
        assert not told
    else:
        (line,) = told
        assert line.startswith(f"aggregation.{key}: {OTHER[key]} decides no weight with rule {rule}, only with ")
        # And so it is: the rule with this key and the one without give the same weights.
        plain, other = make_rule(AggregationConfig(rule)), make_rule(AggregationConfig(rule, **{key: OTHER[key]}))
        assert plain(REPORTS, HISTORY, GEOMETRY) == other(REPORTS, HISTORY, GEOMETRY)


def test_agreement_reads_gains_that_the_server_has_measured_and_no_others():
    tried = Trials(Score(0.5, 0.5, 32), {"a": Score(0.6, 0.5, 32), "b": Score(0.1, 0.5, 32)})
    plain = make_rule(AggregationConfig(gain="server", cap=1.0), tried)(REPORTS, HISTORY, GEOMETRY)
    for key in ("tau", "clip", "scale", "smoothing"):
        assert not lines(gain="server", **{key: OTHER[key]})
        rule = make_rule(AggregationConfig(gain="server", cap=1.0, **{key: OTHER[key]}), tried)
        assert rule(REPORTS, HISTORY, GEOMETRY) != plain
        assert lines(**{key: OTHER[key]}) == [
            f"aggregation.{key}: {OTHER[key]} decides no weight with rule agreement, only with fgrpo, "
            "agreement with gain server, lagging"
        ]
    assert not lines(gain="server")
    (line,) = lines(gain="heldout")
    assert line.startswith("aggregation.gain: heldout decides no weight with rule agreement, only with fgrpo, ")


@pytest.mark.parametrize(("optimizer", "said"), [("plain", 3), ("momentum", 2), ("adam", 0)])
def test_keys_of_other_optimizers_are_told(optimizer, said):
    server = ServerConfig(optimizer, momentum=0.5, beta2=0.9, eps=1e-4)
    assert len(list(unread(replace(Config(), server=server)))) == said


def test_the_keys_that_rules_read_are_keys():
    known = {field.name for field in fields(AggregationConfig)}
    assert {key for entry in WEIGHTINGS.values() for key in (*entry.reads, *entry.reads_tried)} <= known
