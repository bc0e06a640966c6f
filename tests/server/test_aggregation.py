"""What every rule must keep, and what FGRPO's promises."""

import math
from dataclasses import replace

import pytest

from fgrpo.config import AggregationConfig
from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation import FGRPO, FedAvg, Reward, Uniform, make_rule
from fgrpo.server.geometry import Geometry
from fgrpo.server.history import updated_clients


def report(client, reward, sequences=64, std=0.3):
    return Report(client, 3, sequences, 500, reward, std, 8.0, 0.1, {}, {})


REPORTS = [report("a", 0.05), report("b", 6.0, sequences=32), report("c", 0.5), report("d", -0.4)]
HISTORY = {
    "a": ClientHistory(0.04, 0.1, 2),
    "b": ClientHistory(7.0, 3.0, 2),
    "c": ClientHistory(0.5, 0.2, 2),
    "d": ClientHistory(-0.5, 0.2, 2),
}
NOWHERE = Geometry({}, {})  # for rules that do not look at deltas


@pytest.mark.parametrize("scale", ["baseline", "deviation", "error"])
@pytest.mark.parametrize("factor", [1e-3, 0.1, 10, 1e6])
def test_fgrpo_does_not_see_a_clients_reward_scale(scale, factor):
    rule = FGRPO(scale=scale)
    scaled_report = replace(REPORTS[0], reward_mean=REPORTS[0].reward_mean * factor)
    past = HISTORY["a"]
    scaled_past = ClientHistory(past.baseline * factor, past.deviation * factor, past.rounds)
    expected = rule(REPORTS, HISTORY, NOWHERE)
    assert rule([scaled_report, *REPORTS[1:]], {**HISTORY, "a": scaled_past}, NOWHERE) == pytest.approx(
        expected, rel=1e-12
    )
    assert Reward()([scaled_report, *REPORTS[1:]], HISTORY, NOWHERE) != pytest.approx(
        Reward()(REPORTS, HISTORY, NOWHERE)
    )


def test_fgrpo_is_fedavg_while_nobody_has_a_past():
    assert FGRPO()(REPORTS, {}, NOWHERE) == pytest.approx(FedAvg()(REPORTS, {}, NOWHERE))


def test_fgrpo_favours_the_client_that_improved_most_on_itself():
    weights = FGRPO()([replace(r, sequences=64) for r in REPORTS], HISTORY, NOWHERE)
    # gains: a +0.25, b -0.14, c 0, d +0.2
    assert weights[0] > weights[3] > weights[2] > weights[1]
    assert weights[0] / weights[2] == pytest.approx(math.exp(0.25))


@pytest.mark.parametrize("claim", [1e3, 1e12, 1e308])
@pytest.mark.parametrize("sequences", [64, 10**9])
def test_no_claim_takes_a_client_past_the_cap(claim, sequences):
    liar = report("a", claim, sequences)
    weights = FGRPO(cap=0.4)([liar, *REPORTS[1:]], HISTORY, NOWHERE)
    assert weights[0] == pytest.approx(0.4)
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("n_k", "rows", "shares"),
    [
        ("rows", (10, 30), (1, 3)),
        ("rows", (10, None), (1, 2)),
        ("sequences", (10, 30), (1, 2)),
        ("tokens", (10, 30), (1, 5)),
    ],
    ids=["rows", "one-without-end", "sequences", "tokens"],
)
@pytest.mark.parametrize("name", ["fedavg", "fgrpo", "reward"])
def test_n_k_counts_what_it_is_called(name, n_k, rows, shares):
    first, second = (replace(report(k, 0.5, s), rows=n) for k, s, n in zip("ab", (32, 64), rows, strict=True))
    reports = [replace(first, tokens=100), replace(second, tokens=500)]
    weights = make_rule(AggregationConfig(name, n_k=n_k, cap=1.0))(reports, {}, NOWHERE)
    assert weights == pytest.approx([share / sum(shares) for share in shares])


def test_gain_from_a_zero_baseline_is_bounded_and_signed():
    rule, zero = FGRPO(clip=0.5), ClientHistory(0.0, 0.0, 1)
    assert rule.gain(report("a", 0.1), zero) == 0.5
    assert rule.gain(report("a", -0.1), zero) == -0.5
    assert rule.gain(report("a", 0.0), zero) == 0.0


def test_a_configured_rule_is_the_rule():
    config = AggregationConfig("fgrpo", tau=0.5, clip=0.3, cap=0.35, scale="deviation")
    assert make_rule(config) == FGRPO(tau=0.5, clip=0.3, cap=0.35, scale="deviation")
    for name, rule in {"fedavg": FedAvg(), "uniform": Uniform(), "reward": Reward()}.items():
        assert make_rule(replace(config, rule=name)) == rule


def test_history_is_a_moving_average_that_starts_at_the_first_value():
    config = AggregationConfig(decay=0.75, smoothing=0.5)
    first = updated_clients({}, [report("a", 1.0, std=0.5)], {"a": 0.0}, {}, config)
    assert first == {"a": ClientHistory(1.0, 0.5, 1, last=3)}
    reports, gains = [report("a", 2.0, std=0.9), report("b", 3.0)], {"a": 1.0, "b": 0.0}
    second = updated_clients(first, reports, gains, {"a": 0.2}, config)
    assert second["a"] == ClientHistory(1.25, pytest.approx(0.6), 2, 0.5, 0.2, last=3)
    assert second["b"].rounds == 1
    third = updated_clients(second, reports, {"a": 0.0, "b": 0.0}, {"a": 0.4}, config)
    assert (third["a"].gain, third["a"].agreement) == (0.25, pytest.approx(0.25))
    assert first == {"a": ClientHistory(1.0, 0.5, 1, last=3)}


def test_a_gain_within_sampling_error_is_small_by_the_error_and_smoothing_halves_it():
    rule, past = FGRPO(scale="error", clip=10.0), ClientHistory(0.5, 0.4, 3)
    assert rule.gain(report("a", 0.55, sequences=64), past) == pytest.approx(1.0)  # 0.05 over 0.4 / 8
    halved = replace(rule, smoothing=0.5)
    assert halved.smoothed(report("a", 0.55, sequences=64), past) == pytest.approx(0.5)
