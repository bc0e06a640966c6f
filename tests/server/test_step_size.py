"""Step sizes against their formulas on deltas made by hand."""

import pytest
import torch

from fgrpo.config import AggregationConfig, Config, ServerConfig
from fgrpo.records import StepHistory
from fgrpo.server.geometry import Geometry
from fgrpo.server.step_size import STEP_SIZES, Agreement, chosen_step, make_step_size
from fgrpo_kernels.codec import encode


def geometry(deltas, last=()):
    made = (
        {name: encode(torch.tensor(d, dtype=torch.float32), codec="none") for name, d in side.items()}
        for side in (deltas, dict(last))
    )
    return Geometry(*made)


ORTHOGONAL = {"a": [2.0, 0.0, 0.0, 0.0], "b": [0.0, 2.0, 0.0, 0.0]}
EQUAL = {"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0, 1.0, 0.0, 0.0]}
HALVES = {"a": 0.5, "b": 0.5}


def test_spread_is_one_for_equal_deltas_and_k_for_orthogonal_ones():
    assert geometry(EQUAL).spread(HALVES) == pytest.approx(1)
    assert geometry(ORTHOGONAL).spread(HALVES) == pytest.approx(2)
    assert geometry(ORTHOGONAL).spread({"a": 0.75, "b": 0.25}) == pytest.approx(1 / (0.75**2 + 0.25**2))
    assert geometry({"a": [0.0] * 4, "b": [0.0] * 4}).spread(HALVES) == 1.0


@pytest.mark.parametrize(("step", "expected"), [("fixed", 1.0), ("decay", 0.5), ("fedexp", 1.0), ("agreement", 1.0)])
def test_first_known_values(step, expected):
    assert make_step_size(Config(server=ServerConfig(step=step)))(
        geometry(ORTHOGONAL), HALVES, StepHistory(3)
    ) == pytest.approx(expected)


def test_fedexp_is_half_the_spread_of_four_orthogonal_deltas():
    four = {name: [3.0 * (k == j) for j in range(4)] for k, name in enumerate("abcd")}
    assert make_step_size(Config(server=ServerConfig(step="fedexp")))(
        geometry(four), dict.fromkeys("abcd", 0.25), StepHistory()
    ) == pytest.approx(2)


def test_agreement_is_large_while_deltas_agree_and_small_when_they_oppose():
    rule, four = (
        Agreement(slope=4.0, least=0.2),
        {name: [3.0 * (k == j) for j in range(4)] for k, name in enumerate("abcd")},
    )
    quarters = dict.fromkeys(four, 0.25)  # spread 4: steps of up to 2
    agreeing = geometry(four, {"a": [1.0, 3.0**0.5, 0.0, 0.0]})  # cosine 0.5; the others have no past
    opposed = geometry(four, {"a": [-1.0, 0.0, 0.0, 0.0], "b": [0.0, -1.0, 0.0, 0.0]})
    assert rule(agreeing, quarters, StepHistory()) == pytest.approx(2 * 1.0)  # slope * cosine is cut
    assert rule(opposed, quarters, StepHistory()) == pytest.approx(2 * 0.2)
    slight = geometry(four, {"a": [0.1, 0.0, 0.99**0.5, 0.0]})  # cosine 0.1
    assert rule(slight, quarters, StepHistory()) == pytest.approx(2 * 4.0 * 0.1, rel=1e-4)
    remembered = StepHistory(5, 0.2)
    assert rule(slight, quarters, remembered) == pytest.approx(2 * 4.0 * 0.15, rel=1e-4)
    alike = geometry(EQUAL, {"a": [1.0, 1.0, 0.0, 0.0]})
    assert rule(alike, HALVES, StepHistory()) == pytest.approx(1.0)  # deltas that were not divided are not enlarged


@pytest.mark.parametrize(
    ("rule", "server", "expected"),
    [
        ("agreement", ServerConfig(), "agreement"),
        ("agreement", ServerConfig(step="fixed"), "fixed"),
        ("agreement", ServerConfig(optimizer="momentum"), "fixed"),
        ("fedavg", ServerConfig(), "fixed"),
        ("fgrpo", ServerConfig(step="fedexp"), "fedexp"),
    ],
)
def test_a_rule_brings_its_own_step(rule, server, expected):
    assert chosen_step(Config(aggregation=AggregationConfig(rule=rule), server=server)) == expected


@pytest.mark.parametrize("step", STEP_SIZES)
@pytest.mark.parametrize(
    "deltas", [ORTHOGONAL, EQUAL, {"a": [0.0] * 4, "b": [0.0] * 4}], ids=["orthogonal", "equal", "zero"]
)
def test_every_step_size_is_above_zero_and_finite(step, deltas):
    value = make_step_size(Config(server=ServerConfig(step=step)))(
        geometry(deltas, deltas), HALVES, StepHistory(2, 0.1)
    )
    assert 0 < value < 10
