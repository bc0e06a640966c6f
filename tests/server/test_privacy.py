"""The epsilon of a run: against the analytic Gaussian mechanism, and never less than what was told."""

import math
from dataclasses import replace

import pytest
from scipy.stats import norm

from fgrpo.checks import check
from fgrpo.config import AggregationConfig, Config, PrivacyConfig, ServerConfig
from fgrpo.errors import ConfigError
from fgrpo.server.privacy import epsilon, spent_in_round

pytest.importorskip("dp_accounting", reason="needs dp-accounting: install fgrpo[privacy]")
PRIVACY = PrivacyConfig(clip=1.0, noise=2.0)


def exact_delta(multiplier, epsilon):
    """Balle and Wang 2018, theorem 8, at sensitivity 1."""
    half, rest = 1 / (2 * multiplier), epsilon * multiplier
    return norm.cdf(half - rest) - math.exp(epsilon) * norm.cdf(-half - rest)


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (2.0, 1), (4.0, 30), (0.8, 2)])
def test_epsilon_is_that_of_the_analytic_gaussian_mechanism(multiplier, rounds):
    told = epsilon(rounds / multiplier**2, 1e-5)
    assert exact_delta(multiplier / math.sqrt(rounds), told) == pytest.approx(1e-5, rel=0.05)


def test_nothing_spent_is_nothing_told():
    assert epsilon(0.0, 1e-5) == 0.0


def test_equal_weights_are_the_textbook_case():
    """The mean of K has noise of z/root(K) clips and moves by 1/K of one: a multiplier of z root(K)."""
    spent = spent_in_round([0.25] * 4, AggregationConfig(rule="uniform"), PRIVACY)
    assert 1 / math.sqrt(spent) == pytest.approx(2.0 * math.sqrt(4))


def test_the_bound_is_the_rules_not_the_rounds():
    """A client whose weight happened to be small could have had the cap."""
    capped = AggregationConfig(rule="fgrpo", cap=0.5)
    assert spent_in_round([0.25] * 4, capped, PRIVACY) == pytest.approx(0.5**2 / (2.0**2 * 0.25))
    assert spent_in_round([0.5, 0.5], replace(capped, cap=0.1), PRIVACY) == pytest.approx(0.5**2 / (2.0**2 * 0.5))


def test_a_step_that_deltas_decide_is_refused():
    with pytest.raises(ConfigError, match=r"^privacy: server.step fedexp"):
        check(Config(aggregation=AggregationConfig("fgrpo"), server=ServerConfig(step="fedexp"), privacy=PRIVACY))


@pytest.mark.parametrize(
    ("aggregation", "named"),
    [
        pytest.param({"rule": "fedavg"}, "aggregation.rule fedavg", id="no-cap"),
        pytest.param({"rule": "reward"}, "aggregation.rule reward", id="no-cap-either"),
        pytest.param({"rule": "agreement"}, "aggregation.rule agreement", id="weights-from-deltas"),
        pytest.param({"robust": "median"}, "aggregation.robust median", id="median"),
        pytest.param({"robust": "trimmed_mean", "trim": 1}, "aggregation.robust trimmed_mean", id="trimmed"),
        pytest.param({"robust": "clipped_mean", "max_norm": 1.0}, "aggregation.robust clipped_mean", id="clipped"),
    ],
)
def test_what_would_void_it_is_refused_by_name(aggregation, named):
    config = Config(aggregation=AggregationConfig(**{"rule": "fgrpo", **aggregation}), privacy=PRIVACY)
    with pytest.raises(ConfigError, match=f"^privacy: {named}"):
        check(config)
    check(replace(config, privacy=None))
