"""What every rule must keep, and what FGRPO's promises."""

import math
from dataclasses import replace

import pytest

from fgrpo.config import AggregationConfig
from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation import FGRPO, FedAvg, Reward, Uniform, make_rule, updated_history
from fgrpo.server.aggregation.fgrpo import capped


def report(client, reward, sequences=64, std=0.3):
    return Report(client, 3, sequences, 500, reward, std, 8.0, 0.1, {}, {})


REPORTS = [report("a", 0.05), report("b", 6.0, sequences=32), report("c", 0.5), report("d", -0.4)]
HISTORY = {
    "a": ClientHistory(0.04, 0.1, 2),
    "b": ClientHistory(7.0, 3.0, 2),
    "c": ClientHistory(0.5, 0.2, 2),
    "d": ClientHistory(-0.5, 0.2, 2),
}
RULES = [
    pytest.param(Uniform(), id="uniform"),
    pytest.param(FedAvg(), id="fedavg"),
    pytest.param(Reward(), id="reward"),
    pytest.param(FGRPO(), id="fgrpo"),
    pytest.param(FGRPO(scale="deviation", tau=0.3), id="fgrpo-deviation"),
    pytest.param(FGRPO(tau=1e-4, cap=1.0), id="fgrpo-sharp"),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_weights_are_a_distribution(rule, number):
    weights = rule(REPORTS[:number], HISTORY)
    assert len(weights) == number
    assert all(weight >= 0 for weight in weights)
    assert sum(weights) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", ["baseline", "deviation"])
@pytest.mark.parametrize("factor", [1e-3, 0.1, 10, 1e6])
def test_fgrpo_does_not_see_a_clients_reward_scale(scale, factor):
    rule = FGRPO(scale=scale)
    scaled_report = replace(REPORTS[0], reward_mean=REPORTS[0].reward_mean * factor)
    past = HISTORY["a"]
    scaled_past = ClientHistory(past.baseline * factor, past.deviation * factor, past.rounds)
    expected = rule(REPORTS, HISTORY)
    assert rule([scaled_report, *REPORTS[1:]], {**HISTORY, "a": scaled_past}) == pytest.approx(expected, rel=1e-12)
    assert Reward()([scaled_report, *REPORTS[1:]], HISTORY) != pytest.approx(Reward()(REPORTS, HISTORY))


def test_fgrpo_is_fedavg_while_nobody_has_a_past():
    assert FGRPO()(REPORTS, {}) == pytest.approx(FedAvg()(REPORTS, {}))


def test_fgrpo_favours_the_client_that_improved_most_on_itself():
    weights = FGRPO()([replace(r, sequences=64) for r in REPORTS], HISTORY)
    # gains: a +0.25, b -0.14, c 0, d +0.2
    assert weights[0] > weights[3] > weights[2] > weights[1]
    assert weights[0] / weights[2] == pytest.approx(math.exp(0.25))


@pytest.mark.parametrize("claim", [1e3, 1e12, 1e308])
@pytest.mark.parametrize("sequences", [64, 10**9])
def test_no_claim_takes_a_client_past_the_cap(claim, sequences):
    liar = report("a", claim, sequences)
    weights = FGRPO(cap=0.4)([liar, *REPORTS[1:]], HISTORY)
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
    weights = make_rule(AggregationConfig(name, n_k=n_k, cap=1.0))(reports, {})
    assert weights == pytest.approx([share / sum(shares) for share in shares])


def test_gain_from_a_zero_baseline_is_bounded_and_signed():
    rule, zero = FGRPO(clip=0.5), ClientHistory(0.0, 0.0, 1)
    assert rule.gain(report("a", 0.1), zero) == 0.5
    assert rule.gain(report("a", -0.1), zero) == -0.5
    assert rule.gain(report("a", 0.0), zero) == 0.0


@pytest.mark.parametrize(
    ("weights", "cap", "expected"),
    [
        pytest.param([0.7, 0.2, 0.1], 0.5, [0.5, 1 / 3, 1 / 6], id="one-over"),
        pytest.param([0.6, 0.39, 0.01], 0.4, [0.4, 0.4, 0.2], id="second-goes-over-in-turn"),
        pytest.param([1.0, 0.0], 0.6, [0.6, 0.4], id="nothing-left-to-scale"),
        pytest.param([0.9, 0.1], 0.3, [0.5, 0.5], id="cap-below-1/K"),
        pytest.param([0.5, 0.3, 0.2], 1 / 3, [1 / 3] * 3, id="cap-of-just-1/K"),
        pytest.param([1.0], 0.5, [1.0], id="alone"),
    ],
)
def test_capped(weights, cap, expected):
    assert capped(weights, cap) == pytest.approx(expected)


def test_a_configured_rule_is_the_rule():
    config = AggregationConfig("fgrpo", tau=0.5, clip=0.3, cap=0.35, scale="deviation")
    assert make_rule(config) == FGRPO(tau=0.5, clip=0.3, cap=0.35, scale="deviation")
    for name, rule in {"fedavg": FedAvg(), "uniform": Uniform(), "reward": Reward()}.items():
        assert make_rule(replace(config, rule=name)) == rule


def test_history_is_a_moving_average_that_starts_at_the_first_report():
    first = updated_history({}, [report("a", 1.0, std=0.5)], decay=0.75)
    assert first == {"a": ClientHistory(1.0, 0.5, 1)}
    second = updated_history(first, [report("a", 2.0, std=0.9), report("b", 3.0)], decay=0.75)
    assert second["a"] == ClientHistory(1.25, pytest.approx(0.6), 2)
    assert second["b"].rounds == 1
    assert first == {"a": ClientHistory(1.0, 0.5, 1)}
