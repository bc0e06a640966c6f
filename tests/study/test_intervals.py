"""Intervals against tables, and what they are where there is too little to tell."""

import numpy as np
import pytest

from fgrpo.study.intervals import bootstrap, mean_estimate, t_interval, t_quantile

TABLE = [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423), (120, 1.9799)]


@pytest.mark.parametrize(("freedom", "quantile"), TABLE)
def test_students_quantiles_are_those_of_the_table(freedom, quantile):
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, abs=6e-5)


def test_the_interval_of_a_mean_is_the_one_of_the_textbook():
    interval = t_interval([4.0, 6.0, 8.0])  # mean 6, standard error 2 / sqrt(3), two degrees of freedom
    assert (interval.low, interval.high) == pytest.approx((6 - 4.3027 * 1.1547, 6 + 4.3027 * 1.1547), abs=1e-3)
    assert interval.excludes(0)
    assert not interval.excludes(6)


def test_both_intervals_hold_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    estimates = [mean_estimate(rng.normal(1.0, 2.0, size=12).tolist()) for _ in range(200)]
    for kind in ("t", "bootstrap"):
        held = np.mean([not getattr(estimate, kind).excludes(1.0) for estimate in estimates])
        assert 0.88 < held < 0.99, kind


@pytest.mark.parametrize("values", [[1.0], [1.0, float("inf")]], ids=["one seed", "infinite"])
def test_there_is_no_interval_of_too_little(values):
    assert t_interval(values) is None
    assert bootstrap(len(values), lambda index_RS: index_RS.mean(axis=1)) is None


def test_equal_values_have_an_interval_without_width():
    estimate = mean_estimate([0.25] * 5)
    assert (
        estimate.value == estimate.t.low == estimate.t.high == estimate.bootstrap.low == estimate.bootstrap.high == 0.25
    )


def test_the_bootstrap_gives_the_same_interval_every_time():
    values = [0.1, 0.4, 0.2, 0.9]
    assert mean_estimate(values).bootstrap == mean_estimate(values).bootstrap
