"""What every weighting keeps, whatever clients report and however their deltas lie."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo.config import AggregationConfig
from fgrpo.records import ClientHistory, Report, Score
from fgrpo.server.aggregation import FGRPO, WEIGHTINGS, Agreement, Informative, Lagging, make_rule
from fgrpo.server.aggregation.gain import GAINS, Trials
from fgrpo.server.aggregation.limits import bounded
from fgrpo.server.geometry import Geometry
from fgrpo_kernels.codec import encode

SIZE = 64
LIMITED = ("fgrpo", "informative", "agreement", "lagging")

finite = st.floats(allow_nan=False, allow_infinity=False)
rewards = st.one_of(st.just(0.0), st.floats(-2.0, 2.0), finite)
scores = st.builds(Score, rewards, st.floats(0.0, 1e6), st.integers(1, 100))
reports = st.builds(
    lambda reward, std, sequences, share, heldout: Report(
        "?",
        3,
        sequences,
        10 * sequences,
        reward,
        std,
        8.0,
        0.1,
        {},
        {},
        informative=int(share * sequences),
        heldout=heldout,
    ),
    rewards,
    st.floats(0.0, 1e6),
    st.integers(1, 10**6),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    scores,
)
pasts = st.one_of(
    st.none(),
    st.builds(
        ClientHistory, rewards, st.floats(0.0, 1e6), st.integers(1, 50), st.floats(-1, 1), st.none() | st.floats(-1, 1)
    ),
)
clients = st.lists(st.tuples(reports, pasts), min_size=1, max_size=7)


def as_round(drawn, seed):
    """Reports, history and geometry of clients with random deltas, some with an earlier one."""
    random = torch.Generator().manual_seed(seed)
    names = [f"client{k}" for k in range(len(drawn))]
    given_reports = [replace(report, client=name) for name, (report, _) in zip(names, drawn, strict=True)]
    history = {name: past for name, (_, past) in zip(names, drawn, strict=True) if past is not None}
    deltas = {name: encode(torch.randn(SIZE, generator=random), codec="none") for name in names}
    last = {name: encode(torch.randn(SIZE, generator=random), codec="none") for name in history}
    return given_reports, history, deltas, last


def as_trials(told, tried):
    before, *after = tried
    return Trials(before, {report.client: score for report, score in zip(told, after, strict=False)})


@pytest.mark.parametrize("rule", WEIGHTINGS)
@settings(max_examples=60)
@given(
    drawn=clients,
    seed=st.integers(0, 3),
    cap=st.sampled_from([0.2, 0.5, 1.0]),
    floor=st.sampled_from([0.0, 0.3]),
    gain=st.sampled_from(list(GAINS)),
    scale=st.sampled_from(["baseline", "deviation", "error"]),
    tried=st.lists(scores, min_size=8, max_size=8),
)
def test_a_distribution_within_its_limits_that_moves_with_the_order(rule, drawn, seed, cap, floor, gain, scale, tried):
    config = AggregationConfig(rule, tau=0.3, cap=cap, floor=floor, scale=scale, gain=gain)
    told, history, deltas, last = as_round(drawn, seed)
    trials = as_trials(told, tried)
    weights = make_rule(config, trials)(told, history, Geometry(deltas, last))
    assert len(weights) == len(told)
    assert all(math.isfinite(weight) and weight >= 0 for weight in weights)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
    if rule in LIMITED:
        assert max(weights) <= max(cap, 1 / len(told)) + 1e-12
        assert min(weights) >= floor / len(told) - 1e-12
    turned = [*told[1:], told[0]]
    back = make_rule(config, trials)(turned, history, Geometry({r.client: deltas[r.client] for r in turned}, last))
    assert [back[-1], *back[:-1]] == pytest.approx(weights, abs=1e-6)


@pytest.mark.parametrize("rule", ["fgrpo", "lagging", "agreement"])
@settings(max_examples=60)
@given(
    drawn=st.lists(st.tuples(reports, pasts), min_size=2, max_size=5),
    claim=rewards,
    std=st.floats(0.0, 1e6),
    heldout=scores,
    tried=st.lists(scores, min_size=6, max_size=6),
)
def test_no_word_on_rewards_or_scores_changes_a_weight_where_the_server_scores(rule, drawn, claim, std, heldout, tried):
    told, history, *_ = as_round(drawn, 0)
    liars = [replace(told[0], reward_mean=claim, reward_std=std, heldout=heldout), *told[1:]]
    weigh = make_rule(AggregationConfig(rule, tau=0.1, cap=1.0, gain="server"), as_trials(told, tried))
    assert weigh(liars, history, Geometry({}, {})) == weigh(told, history, Geometry({}, {}))


@pytest.mark.parametrize("gain", ["reward", "heldout"])
@pytest.mark.parametrize("rule", ["fgrpo", "informative", "agreement", "lagging"])
@pytest.mark.parametrize("claim", [1e30, -1e30, 1e308, 0.0])
def test_no_claim_passes_the_cap_or_presses_an_honest_client_under_its_floor(rule, claim, gain):
    scored = Score(0.5, 0.3, 32)
    honest = [Report(name, 3, 64, 500, 0.5, 0.3, 8.0, 0.1, {}, {}, informative=32, heldout=scored) for name in "abc"]
    lie = Score(claim, 0.0, 10**9)
    liar = Report("liar", 3, 10**9, 10**12, claim, 0.0, 8.0, 0.0, {}, {}, informative=10**9, heldout=lie)
    past = {name: ClientHistory(0.5, 0.3, 4, 0.0, 0.1) for name in (*"abc", "liar")}
    same = encode(torch.ones(SIZE), codec="none")  # it sends the same delta every time: perfect agreement
    deltas = {
        name: encode(torch.randn(SIZE, generator=torch.Generator().manual_seed(k)), codec="none")
        for k, name in enumerate("abc")
    }
    geometry = Geometry({**deltas, "liar": same}, {"liar": same})
    weights = make_rule(AggregationConfig(rule, tau=0.1, cap=0.4, floor=0.5, gain=gain))(
        [*honest, liar], past, geometry
    )
    assert weights[3] <= 0.4 + 1e-12
    assert min(weights[:3]) >= 0.125 - 1e-12


def test_a_gain_that_is_steadily_inflated_stays_under_the_cap():
    rule, baseline = FGRPO(tau=0.1, cap=0.4), 0.5
    for _ in range(20):
        told = [Report(name, 3, 64, 500, 0.5, 0.3, 8.0, 0.1, {}, {}) for name in "abc"]
        liar = Report("liar", 3, 64, 500, baseline * 2, 0.3, 8.0, 0.1, {}, {})
        past = {name: ClientHistory(0.5, 0.3, 4) for name in "abc"} | {"liar": ClientHistory(baseline, 0.3, 4)}
        weights = rule([*told, liar], past, Geometry({}, {}))
        assert weights[3] <= 0.4 + 1e-12
        assert weights[:3] == pytest.approx([0.2] * 3)
        baseline *= 1.3


@pytest.mark.parametrize(
    "rule", [Informative(cap=1.0), Lagging(cap=1.0), Agreement(cap=1.0)], ids=["informative", "lagging", "agreement"]
)
def test_a_client_whose_groups_are_all_equal_counts_nothing_unless_all_are(rule):
    told = [
        Report(name, 3, 64, 500, 0.5, 0.3, 8.0, 0.1, {}, {}, informative=n)
        for name, n in zip("abc", (0, 10, 30), strict=True)
    ]
    assert rule(told, {}, Geometry({}, {})) == pytest.approx([0.0, 0.25, 0.75])
    nothing = [replace(report, informative=0) for report in told]
    assert rule(nothing, {}, Geometry({}, {})) == pytest.approx([1 / 3] * 3)


def test_agreement_follows_the_part_of_a_delta_that_is_signal():
    random = torch.Generator().manual_seed(0)
    signal = torch.randn(10_000, generator=random)
    noise = [torch.randn(10_000, generator=random) for _ in range(3)]
    deltas = {"learner": signal + noise[0], "coin": noise[1]}
    last = {"learner": signal + noise[2], "coin": torch.randn(10_000, generator=random)}
    geometry = Geometry(
        *({name: encode(delta, codec="int8") for name, delta in side.items()} for side in (deltas, last))
    )
    assert geometry.agreement["learner"] == pytest.approx(0.5, abs=0.03)
    assert geometry.agreement["coin"] == pytest.approx(0.0, abs=0.03)
    told = [Report(name, 3, 64, 500, 0.5, 0.3, 8.0, 0.1, {}, {}, informative=32) for name in deltas]
    weights = Agreement(cap=1.0)(told, {}, geometry)
    assert weights[0] > 0.85
    newcomer = replace(told[0], client="new")
    extended = Geometry(
        {**{n: encode(d, codec="int8") for n, d in deltas.items()}, "new": encode(signal, codec="int8")},
        {name: encode(delta, codec="int8") for name, delta in last.items()},
    )
    with_it = Agreement(cap=1.0)([*told, newcomer], {}, extended)
    assert with_it[1] < with_it[2] < with_it[0]


def test_agreement_counts_those_less_whose_deltas_do_harm_in_the_servers_own_trials():
    told = [Report(name, 3, 64, 500, 0.5, 0.3, 8.0, 0.1, {}, {}, informative=32) for name in "abc"]
    past = {
        "a": ClientHistory(0.1, 0.3, 4),
        "b": ClientHistory(0.9, 0.3, 4),
        "c": ClientHistory(0.5, 0.3, 4, gain=-1.0),
    }
    trials = Trials(Score(0.5, 0.4, 16), {"a": Score(0.6, 0.4, 16), "b": Score(0.5, 0.4, 16), "c": Score(0.2, 0.4, 16)})

    def weigh(tau=1.0, of=told, **config):
        rule = make_rule(AggregationConfig(cap=1.0, scale="error", clip=5.0, tau=tau, **config), trials)
        return rule(of, past, Geometry({}, {}))

    harm = math.exp(-3.0 / 2)  # three standard errors; whose delta gains one, and whose delta gains nothing, are level
    assert weigh(tau=2.0, gain="server") == pytest.approx([1 / (2 + harm), 1 / (2 + harm), harm / (2 + harm)])
    smooth = math.exp(-(0.5 * 1.0 + 0.5 * 3.0) / 2)
    assert weigh(tau=2.0, gain="server", smoothing=0.5)[2] == pytest.approx(smooth / (2 + smooth))
    assert weigh(tau=1e-4, gain="server") == [0.5, 0.5, 0.0]
    assert weigh(tau=1e-4, gain="server", of=told[2:]) == [1.0]
    assert weigh(gain="reward") == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("weights", "cap", "floor", "expected"),
    [
        pytest.param([0.7, 0.2, 0.1], 0.5, 0.0, [0.5, 1 / 3, 1 / 6], id="one-over"),
        pytest.param([0.6, 0.39, 0.01], 0.4, 0.0, [0.4, 0.4, 0.2], id="second-goes-over-in-turn"),
        pytest.param([1.0, 0.0], 0.6, 0.0, [0.6, 0.4], id="nothing-left-to-scale"),
        pytest.param([0.9, 0.1], 0.3, 0.0, [0.5, 0.5], id="cap-below-1/K"),
        pytest.param([0.5, 0.3, 0.2], 1 / 3, 0.0, [1 / 3] * 3, id="cap-of-just-1/K"),
        pytest.param([1.0], 0.5, 0.0, [1.0], id="alone"),
        pytest.param([0.8, 0.2, 0.0], 1.0, 0.3, [0.72, 0.18, 0.1], id="one-under"),
        pytest.param([0.9, 0.1, 0.0, 0.0], 0.5, 0.4, [0.5, 0.3, 0.1, 0.1], id="over-and-under"),
        pytest.param([0.9, 0.1], 1.0, 1.0, [0.5, 0.5], id="floor-of-an-equal-share"),
    ],
)
def test_bounded(weights, cap, floor, expected):
    for order in permutations(range(len(weights))):
        moved = bounded([weights[k] for k in order], cap, floor)
        assert moved == pytest.approx([expected[k] for k in order])


shares = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=6)


@settings(max_examples=200)
@given(shares, st.sampled_from([0.25, 0.4, 0.7, 1.0]), st.sampled_from([0.0, 0.2, 0.6]))
def test_bounded_keeps_the_proportions_of_those_that_are_free(drawn, cap, floor):
    weights = [share / math.fsum(drawn) for share in drawn]
    result, low, high = bounded(weights, cap, floor), floor / len(drawn), max(cap, 1 / len(drawn))
    assert math.fsum(result) == pytest.approx(1)
    scales = [r / w for r, w in zip(result, weights, strict=True) if low + 1e-9 < r < high - 1e-9]
    assert not scales or max(scales) == pytest.approx(min(scales))
    scale = scales[0] if scales else None
    for r, w in zip(result, weights, strict=True):
        if scale is not None and r >= high - 1e-9:
            assert w * scale >= high - 1e-6
        if scale is not None and r <= low + 1e-9:
            assert w * scale <= low + 1e-6
