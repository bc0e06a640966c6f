"""Arms against the reference on made-up curves."""

import pytest

from fgrpo.study.comparison import against
from fgrpo.study.measures import Curve

ROUNDS = range(11)


def curves(step, seeds=range(5), noise=0.0, top=0.9, sampled=8):
    """Curves that rise by `step` a round up to `top`; a seed shifts a whole curve, by far more than arms differ."""

    def accuracy(seed, number):
        return 0.05 * seed + min(top, 0.1 + step * number) + noise * (-1) ** (seed + number)

    completions = dict.fromkeys(ROUNDS[1:], sampled) if sampled else {}
    return {seed: Curve.of({"a": {n: accuracy(seed, n) for n in ROUNDS}}, ["a"], completions) for seed in seeds}


def test_twice_the_pace_is_half_the_rounds():
    found = against(curves(0.16), curves(0.08), last=1)
    assert found.speed_up.value == pytest.approx(2.0)
    assert (found.speed_up.bootstrap.low, found.speed_up.bootstrap.high) == pytest.approx((2.0, 2.0))
    assert found.speed_up_by_seed.value == pytest.approx(2.0)
    assert found.final.value == pytest.approx(0.0)


def test_rounds_can_be_bought_with_completions():
    found = against(curves(0.16, sampled=16), curves(0.08), last=1)
    assert found.speed_up.value == pytest.approx(2.0)
    assert found.sample_efficiency.value == pytest.approx(1.0)
    assert found.sample_efficiency.bootstrap is not None
    assert against(curves(0.16, sampled=0), curves(0.08), last=1).sample_efficiency is None


def test_pairs_take_out_what_seeds_differ_by():
    found = against(curves(0.05, noise=0.001), curves(0.04), last=3)
    assert found.final.value == pytest.approx(0.09, abs=0.001)
    assert found.final.t.high - found.final.t.low < 0.01, "seeds alone would make this 0.2"
    assert found.final.t.excludes(0)


def test_an_arm_that_never_gets_there_has_speed_0():
    found = against(curves(0.02), curves(0.08), last=1)
    assert found.speed_up.value == found.speed_up.bootstrap.high == 0.0
    assert found.speed_up_by_seed is None


def test_the_reference_against_itself_shows_no_difference():
    found = against(curves(0.05), curves(0.05), last=3)
    assert found.final.value == found.worst.value == 0.0
    assert found.speed_up.value == found.speed_up_by_seed.value == 1.0


def test_only_seeds_that_both_have_are_compared():
    found = against(curves(0.05, seeds=[0, 1, 2]), curves(0.04, seeds=[2]), last=1)
    assert found.final.value == pytest.approx(0.1)
    assert found.final.t is None
    assert against(curves(0.05, seeds=[0]), curves(0.04, seeds=[1]), last=1) is None
