"""The verdict on made-up runs of every kind."""

import math
from dataclasses import dataclass, replace

import pytest

from fgrpo.records import TEST_SET, ClientData, Evaluation, Report, RoundSummary, Sample
from fgrpo.show.changes import accuracy_change, trend
from fgrpo.show.summary import RunSummary
from fgrpo.show.verdict import verdict

ROUNDS = 12


@dataclass(frozen=True)
class Made:
    """A client of a made-up run; a pair is a measure's first and last value, with a ripple between them.

    Attributes:
        accuracy: at evenly spread evaluations, the first before training; none without.
        lost: the last so many rounds' replies were quarantined.
    """

    reward: tuple[float, float] = (1.0, 1.0)
    equal: float = 0.3
    entropy: tuple[float, float] = (0.4, 0.35)
    length: tuple[float, float] = (10.0, 9.0)
    grad_norm: tuple[float, float] = (1.0, 1.2)
    accuracy: tuple[float, ...] = (0.3, 0.32)
    weight: float = 1.0
    rows: int | None = None
    unrewarded: int = 0
    lost: int = 0


def between(ends, number, geometric=False):
    first, last = ends
    share, ripple = (number - 1) / (ROUNDS - 1), 1.02 if number % 2 else 0.98
    return ripple * (first * (last / first) ** share if geometric else first + (last - first) * share)


def report(name, made, n):
    metrics = {"entropy": between(made.entropy, n, True), "grad_norm": between(made.grad_norm, n, True)}
    reward, length = between(made.reward, n), between(made.length, n)
    return Report(name, n, 64, 640, reward, 0.1, length, made.equal, metrics, {}, unrewarded=made.unrewarded)


def made_up(clients, rounds=ROUNDS, steps=(0.5, 0.5), reason="worker died"):
    records = [ClientData(name, made.rows, 64, {}, {}) for name, made in clients.items()]
    for name, made in clients.items():
        last = max(1, len(made.accuracy) - 1)
        records += [Evaluation(name, at * rounds // last, 128, a, a) for at, a in enumerate(made.accuracy)]
    for n in range(1, rounds + 1):
        heard = {c: made for c, made in clients.items() if n <= rounds - made.lost and made.rows != 0}
        records += [report(name, made, n) for name, made in heard.items()]
        total = sum(made.weight for made in heard.values())
        weights = {name: made.weight / total for name, made in heard.items()}
        lost = {name: reason for name, made in clients.items() if name not in heard and made.rows != 0}
        records.append(RoundSummary(n, weights, {}, lost, {}, 0, between(steps, n, True), {}))
    return RunSummary.of(records)


GOOD = Made(reward=(0.2, 0.8), accuracy=(0.3, 0.5, 0.7))
STILL = Made()
KINDS = {
    "learning": ({"a": GOOD, "b": replace(GOOD, reward=(2.0, 8.0))}, ["learning"], "30.0% → 70.0% (+40.0 ± 8"),
    "learning by rewards alone": ({"a": replace(GOOD, accuracy=())}, ["learning"], "a reward 0.281 → 0.718"),
    "solved": ({"a": replace(GOOD, equal=1.0, accuracy=(0.5, 0.99))}, ["solved"], "100.0% of prompt groups"),
    "stalled": ({"a": replace(STILL, equal=0.97), "b": replace(STILL, equal=0.95)}, ["stalled"], "96.0% of prompt"),
    "collapsing entropy": ({"a": replace(STILL, entropy=(0.5, 0.001))}, ["collapsing"], "nats a token"),
    "collapsing lengths": ({"a": replace(STILL, length=(40.0, 1.0))}, ["collapsing"], "tokens long"),
    "rambling": ({"a": replace(STILL, length=(8.0, 60.0))}, ["collapsing"], "tokens long"),
    "diverging gradients": ({"a": replace(STILL, grad_norm=(0.1, 90.0))}, ["diverging"], "gradient norm"),
    "diverging accuracy": (
        {"a": replace(STILL, accuracy=(0.3, 0.8, 0.2))},
        ["diverging"],
        "80.0% → 20.0% (-60.0 ± 10.0 points) since round 6",
    ),
    "not finite": ({"a": replace(STILL, grad_norm=(1.0, math.inf))}, ["diverging"], "round 2, a: grad_norm"),
    "reward without accuracy": (
        {"a": replace(GOOD, accuracy=(0.3, 0.3)), "b": replace(GOOD, accuracy=(0.4, 0.39))},
        ["reward without accuracy"],
        "a reward 0.281 → 0.718; b reward",
    ),
    "undecided": ({"a": STILL}, ["undecided"], "reward clearly up at 0 of 1 clients; 12 rounds"),
    "one client games its reward": (
        {"a": GOOD, "b": GOOD, "c": replace(GOOD, accuracy=(0.3, 0.28))},
        ["learning", "reward without accuracy"],
        "c reward 0.281 → 0.718, accuracy 30.0% → 28.0%",
    ),
    "harmed": (
        {"a": GOOD, "b": GOOD, "c": replace(STILL, accuracy=(0.8, 0.4))},
        ["learning", "harmed"],
        "c 80.0% → 40.0% (-40.0 ± 11.",
    ),
    "carried": (
        {"a": GOOD, "b": GOOD, "c": replace(GOOD, weight=0.01, reward=(1.0, 1.0))},
        ["learning", "starved", "carried"],
        "c 30.0% → 70.0%",
    ),
    "carried without a signal of its own": (
        {"a": GOOD, "c": replace(GOOD, equal=1.0, reward=(0.0, 0.0))},
        ["learning", "stalled", "carried"],
        "c 30.0% → 70.0% (+40.0 ± 11.4 points); 100.0% of its own groups",
    ),
}


LAGGING = {
    "starved of weight": (replace(STILL, weight=0.05), "starved", "c: its weight is 7"),
    "starved of rows": (replace(STILL, rows=0, accuracy=()), "starved", "c: no training rows"),
    "starved of rewards": (replace(STILL, unrewarded=64), "starved", "c: 768 of its completions got no reward"),
    "starved by quarantine": (replace(STILL, lost=9), "starved", "c: replies quarantined in 9 of 12 rounds"),
    "stalled alone": (replace(STILL, equal=1.0), "stalled", "equal rewards in rounds 9 to 12: c: 100.0%"),
}


@pytest.mark.parametrize(("client", "kind", "words"), LAGGING.values(), ids=LAGGING)
def test_a_client_that_lags_behind_while_the_run_learns(client, kind, words):
    first, second = verdict(made_up({"a": GOOD, "b": GOOD, "c": client}))
    assert (first.kind, second.kind) == ("learning", kind)
    assert words in second.evidence


@pytest.mark.parametrize(("clients", "kinds", "words"), KINDS.values(), ids=KINDS)
def test_a_run_of_this_kind(clients, kinds, words):
    findings = verdict(made_up(clients))
    assert [finding.kind for finding in findings] == kinds
    assert words in findings[-1].evidence
    no_fault = {"learning", "solved", "carried"}
    assert all(bool(finding.remedy) == (finding.kind not in no_fault) for finding in findings)


EQUAL_REWARDS = {
    "always 0": ((0.0, 0.0), (1.0, 1.0), "stalled", "Every reward is 0 from the first round on"),
    "always 1": ((1.0, 1.0), (1.0, 1.0), "stalled", "Every reward is the same from the first round on"),
    "rarely more, 0 by now": ((0.01, 0.0), (0.85, 1.0), "stalled", "Every reward is 0 by now"),
    "1 by now": ((0.5, 1.0), (0.3, 1.0), "stalled", "Accuracy is the share of answers"),
    "0 by now": ((0.17, 0.0), (0.5, 1.0), "collapsing", "Lower train.lr"),
    "fell to credit for nothing": ((0.5, 0.1), (0.5, 1.0), "collapsing", "Lower train.lr"),
}


@pytest.mark.parametrize(("rewards", "equal", "kind", "remedy"), EQUAL_REWARDS.values(), ids=EQUAL_REWARDS)
def test_what_equal_rewards_call_for_depends_on_how_they_came(rewards, equal, kind, remedy):
    (finding,) = verdict(at_once({"a": STILL}, rewards, equal))
    assert (finding.kind, finding.remedy[: len(remedy)]) == (kind, remedy)


def at_once(clients, rewards, equal, rounds=ROUNDS):
    """A made-up run with one reward and share of equal groups in the first round, and others in all after it."""
    summary = made_up(clients, rounds)
    reports = {
        c: {n: replace(r, reward_mean=rewards[n > 1], degenerate=equal[n > 1]) for n, r in of.items()}
        for c, of in summary.reports.items()
    }
    return replace(summary, reports=reports)


def test_a_collapse_in_the_second_of_two_rounds_is_one():
    (finding,) = verdict(at_once({"a": replace(STILL, accuracy=(0.06, 0.0))}, (0.17, 0.0), (0.5, 1.0), rounds=2))
    assert finding.says.startswith("Collapsed: rewards fell since the first round")
    assert finding.evidence.startswith("a reward 0.17 → 0; 100.0% of prompt groups had equal rewards in round 2; mean ")
    assert "accuracy 6.0% → 0.0%" in finding.evidence


def test_rewards_that_fall_where_accuracy_was_not_measured():
    (finding,) = verdict(made_up({"a": Made(reward=(0.8, 0.2), accuracy=())}))
    assert (finding.kind, finding.evidence) == ("diverging", "a reward 0.719 → 0.282")


def test_samples_are_to_be_read_where_there_are_any_and_else_to_be_kept():
    summary = made_up({"a": replace(STILL, equal=0.97)})
    assert verdict(summary)[0].remedy.endswith("; keep samples (--evaluation.samples 2) and read them.")
    kept = {c: {n: replace(e, samples=[SAMPLE]) for n, e in of.items()} for c, of in summary.evaluations.items()}
    assert verdict(replace(summary, evaluations=kept))[0].remedy.endswith("; read the samples.")


SAMPLE = Sample("1 + 1 =", "2", "3", 0.0, False)


def test_one_reward_function_is_not_spoken_of_as_several():
    summary = made_up({"a": replace(GOOD, accuracy=(0.3, 0.3))})
    assert "function" not in verdict(summary)[0].remedy
    assert "given exactly 1" in verdict(summary)[0].remedy
    parts = {n: replace(r, metrics={**r.metrics, "reward/close": 0.5}) for n, r in summary.reports["a"].items()}
    assert "the first function judges" in verdict(replace(summary, reports={"a": parts}))[0].remedy


STANDING = {
    "few rows, by the rule": (
        (0.03, 4),
        "small",
        "c: its mean weight is 1.5%, its share of rows 2.0% (4 of 204)",
        False,
    ),
    "much weight, few rows": ((1.0, 4), None, "", False),
    "far more weight than rows": ((2.0, 4), "heavy", "its mean weight is 50.0%, its share of rows 2.0%", False),
    "little weight, many rows": ((0.03, 100), "starved", "its mean weight is 1.5%, its share of rows 33.3%", True),
}


@pytest.mark.parametrize(("client", "kind", "words", "alarming"), STANDING.values(), ids=STANDING)
def test_weights_against_rows(client, kind, words, alarming):
    weight, rows = client
    good = replace(GOOD, rows=100)
    findings = verdict(made_up({"a": good, "b": good, "c": replace(STILL, weight=weight, rows=rows)}))[1:]
    assert [finding.kind for finding in findings] == ([kind] if kind else [])
    for finding in findings:
        assert words in finding.evidence
        assert finding.alarming == alarming
        assert "log.txt" not in finding.remedy, "nothing failed"


def test_quarantines_are_where_the_remedy_says():
    (_, starved) = verdict(made_up({"a": GOOD, "b": GOOD, "c": replace(STILL, lost=9)}))
    assert starved.remedy.startswith("The table of quarantined replies")


def test_a_weight_that_its_groups_explain():
    client = replace(STILL, weight=0.05, equal=0.95, rows=50)
    starved = verdict(made_up({"a": replace(GOOD, rows=50), "c": client}))[1]
    assert starved.evidence.endswith("; 95.0% of its groups had equal rewards")
    assert starved.remedy.startswith("Harder or easier tasks")


def test_who_was_never_asked_is_told_without_alarm():
    summary = made_up({"a": GOOD})
    others = tuple(ClientData(f"ward-{k}", 9, 8, {}, {}) for k in range(9))
    finding = verdict(replace(summary, data=(*summary.data, *others)))[1]
    assert (finding.kind, finding.alarming) == ("not asked", False)
    assert finding.evidence == "12 rounds of 1 client, drawn from 10"


def test_answers_without_a_reward_are_told_beside_the_accuracy():
    summary = made_up({"a": STILL})
    some = {c: {n: replace(e, unscored=3) for n, e in of.items()} for c, of in summary.evaluations.items()}
    assert "no reward could be told for 6 held-out answers" in verdict(replace(summary, evaluations=some))[0].evidence


def test_too_few_prompts_are_the_reason():
    few = made_up({"a": STILL})
    few = {c: {n: replace(e, prompts=8) for n, e in of.items()} for c, of in few.evaluations.items()}
    (finding,) = verdict(replace(made_up({"a": STILL}), evaluations=few))
    assert finding.says.startswith("Undecided: too few held-out prompts")
    assert "8 held-out prompts a client tell differences of 43 points at the least" in finding.evidence
    assert "evaluation.prompts" in finding.remedy
    many = {c: {n: replace(e, prompts=2000) for n, e in of.items()} for c, of in few.items()}
    assert verdict(replace(made_up({"a": STILL}), evaluations=many))[0].says.startswith("Undecided: no change beyond")


def test_a_step_of_the_server_that_grows_without_bound():
    (finding,) = verdict(made_up({"a": STILL}, steps=(0.01, 50.0)))
    assert finding.kind == "diverging"
    assert finding.evidence.startswith("server's step ")


def test_quarantines_for_training_that_diverged():
    clients = {"a": STILL, "b": replace(STILL, lost=3)}
    (finding, *_) = verdict(made_up(clients, reason="delta is not finite; training diverged"))
    assert finding.kind == "diverging"
    assert "round 10, b: delta is not finite" in finding.evidence


def test_little_is_not_enough():
    (finding,) = verdict(made_up({"a": replace(STILL, accuracy=(0.3,))}, rounds=1))
    assert (finding.kind, finding.evidence) == ("undecided", "1 round")


def test_many_clients_make_one_sentence():
    clients = {"a": GOOD} | {f"ward-{k}": replace(STILL, rows=0, accuracy=()) for k in range(20)}
    finding = verdict(made_up(clients))[1]
    assert finding.says == "Starved: ward-0, ward-1, ward-2, ward-3, ward-4 and 15 more hardly take part."
    assert finding.evidence.endswith("; and 15 more")


def test_the_runs_own_test_set_is_evidence():
    summary = made_up({"a": GOOD})
    measured = {n: Evaluation(TEST_SET, n, 500, accuracy, accuracy) for n, accuracy in ((0, 0.25), (12, 0.5))}
    assert "test set 25.0% → 50.0% (+25.0" in verdict(replace(summary, test_set=measured))[0].evidence


@pytest.mark.parametrize(("prompts", "said"), [(8, False), (400, True)])
def test_reward_without_accuracy_is_not_said_of_a_rise_that_few_prompts_cannot_tell(prompts, said):
    summary = made_up({"a": GOOD, "b": GOOD})
    measured = {n: Evaluation("b", n, prompts, accuracy, accuracy) for n, accuracy in ((0, 0.25), (12, 0.26))}
    findings = verdict(replace(summary, evaluations={**summary.evaluations, "b": measured}))
    assert any("Reward goes up" in finding.says for finding in findings) == said


def test_chance_is_no_change():
    same = accuracy_change(Evaluation("a", 0, 64, 0.5, 0.5), Evaluation("a", 1, 64, 0.62, 0.5))
    assert not same.up
    assert not same.not_up, "a sign of a rise all the same"
    nothing = accuracy_change(Evaluation("a", 0, 64, 0.0, 0.0), Evaluation("a", 1, 64, 0.0, 0.0))
    assert nothing.error > 0.02, "0 of 64 is not certain"


@pytest.mark.parametrize(
    ("values", "up", "down"),
    [
        ([1, 2, 3, 4, 5, 6], True, False),
        ([6, 5, 4, 3, 2, 1], False, True),
        ([1, 9, 2, 8, 1, 9], False, False),
        ([3, 3, 3, 3], False, False),
    ],
    ids=["rising", "falling", "noise", "constant"],
)
def test_trends(values, up, down):
    change = trend([float(value) for value in values])
    assert (change.up, change.down) == (up, down)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, 2.0, math.nan, 4.0]], ids=["too few", "not finite"])
def test_no_trend(values):
    assert trend(values) is None
