"""Measures of made-up curves."""

import math

import pytest

from fgrpo.errors import ConfigError
from fgrpo.study.measures import Curve, cost_of

ACCURACY = {
    "a": {0: 0.2, 2: 0.4, 4: 0.8, 6: 0.6},
    "b": {0: 0.4, 2: 0.6, 4: 0.4, 6: 0.8},
    "coin": {0: 1.0, 2: 0.0, 4: 1.0, 6: 0.0},
}


def test_only_the_clients_that_count_are_measured():
    curve = Curve.of(ACCURACY, ["a", "b*"])
    assert curve.rounds == (0, 2, 4, 6)
    assert curve.mean == pytest.approx((0.3, 0.5, 0.6, 0.7))
    assert set(curve.clients) == {"a", "b"}


def test_final_worst_and_deviation():
    curve = Curve.of(ACCURACY, ["a", "b"])
    assert curve.final(2) == pytest.approx(0.65)
    assert curve.worst(2) == pytest.approx(0.6), "b's, as a mean over evaluations and not the least of them"
    assert curve.deviation(2) == pytest.approx(0.05)
    assert curve.final(99) == pytest.approx(0.6), "all but the evaluation before training"
    assert Curve.of({"a": {0: 0.5}}).final(3) == 0.5


def test_an_evaluation_that_is_missing_does_not_count():
    curve = Curve.of({"a": {0: 0.2, 1: 0.4}, "b": {0: 0.4, 1: 0.8, 2: 0.6}})
    assert curve.mean == pytest.approx((0.3, 0.6, 0.6))
    assert curve.worst(1) == 0.6, "of b, as a was not measured at the end"


def test_completions_are_counted_until_an_evaluation():
    assert Curve.of(ACCURACY, ["a"], dict.fromkeys(range(1, 7), 10)).completions == (0, 20, 40, 60)
    assert Curve.of(ACCURACY, ["a"]).completions == ()


def test_a_pattern_without_a_client_is_told():
    with pytest.raises(ConfigError, match=r"no client called x or y\* was evaluated, only a, b, coin"):
        Curve.of(ACCURACY, ["x", "y*"])


@pytest.mark.parametrize(
    ("values", "target", "rounds"),
    [
        pytest.param([0.2, 0.4, 0.8], 0.4, 3, id="at an evaluation"),
        pytest.param([0.2, 0.4, 0.8], 0.6, 4.5, id="between two"),
        pytest.param([0.2, 0.4, 0.8], 0.1, 0, id="before training"),
        pytest.param([0.2, 0.4, 0.8], 0.9, math.inf, id="never"),
        pytest.param([0.2, 0.8, 0.4], 0.5, 1.5, id="the first time"),
        pytest.param([0.4, 0.4, 0.4], 0.4, 0, id="flat"),
    ],
)
def test_cost_of(values, target, rounds):
    assert cost_of(target, [0, 3, 6], values) == pytest.approx(rounds)
