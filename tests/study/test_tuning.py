"""Which value an arm is reported at."""

from dataclasses import replace

import pytest

from fgrpo.study.plan import pairs
from fgrpo.study.result import Result
from fgrpo.study.spec import Tune
from fgrpo.study.tuning import best_by_others, finalists, played

SEEDS, TUNING_SEED = (0, 1, 2), 7


@pytest.fixture
def tuned(study):
    """Return a function that gives a study of one arm with a grid, its pair, and what finds made-up accuracies."""

    def make(accuracy, number=1, key="server.lr"):
        """Accuracies by value and seed; the values are the grid."""
        tune = Tune(key, tuple(accuracy), (TUNING_SEED,), number)
        small = replace(study(), seeds=SEEDS, tune=tune)
        small = replace(small, arms=small.arms[:1])

        def find(cell):
            share = accuracy[cell.value].get(cell.seed)
            return None if share is None else Result({"sums": {0: 0.0, 1: share}}, {}, 0, 1.0)

        (pair,) = pairs(small)
        return pair, small, find

    return make


@pytest.mark.parametrize(
    ("on_tuning_seed", "value", "at_edge"),
    [
        pytest.param({1: 0.5, 2: 0.7, 4: 0.6}, 2, False, id="inside"),
        pytest.param({1: 0.5, 2: 0.6, 4: 0.7}, 4, True, id="largest"),
        pytest.param({4: 0.5, 1: 0.7, 2: 0.6}, 1, True, id="smallest, unsorted"),
        pytest.param({1: 0.5, 2: 0.7, 4: None}, 2, False, id="beyond it a run failed"),
        pytest.param({1: 0.7, 2: 0.7, 4: 0.7}, 1, True, id="all equal"),
        pytest.param({3: 0.7}, 3, False, id="no choice"),
    ],
)
def test_one_finalist_is_the_best_on_the_tuning_seeds(tuned, on_tuning_seed, value, at_edge):
    pair, small, find = tuned({v: {TUNING_SEED: a} | dict.fromkeys(SEEDS, 0.5) for v, a in on_tuning_seed.items()})
    choice, results = played(pair, small, find)
    assert (choice.finalists, choice.at_edge, choice.text) == ((value,), at_edge, f"{float(value)}")
    assert choice.by_seed == dict.fromkeys(SEEDS, value)
    assert results.keys() == set(SEEDS)


def test_words_have_no_edge(tuned):
    accuracy = {word: {TUNING_SEED: a, 0: a} for word, a in {"plain": 0.5, "adam": 0.7}.items()}
    choice, _ = played(*tuned(accuracy, key="server.optimizer"))
    assert (choice.text, choice.at_edge) == ("adam", False)


def test_nothing_to_choose_from(tuned):
    pair, small, find = tuned({1: {}, 2: {}})
    assert finalists(pair, small, find) == ()
    assert played(pair, small, find) == (None, {})


def test_an_arm_that_is_not_tuned_has_no_text(study):
    (pair, _) = pairs(study())
    choice, results = played(pair, study(), lambda cell: Result({"sums": {0: 0.0}}, {}, 0, 1.0))
    assert (choice.finalists, choice.by_seed, choice.text) == ((None,), {0: None}, "")
    assert results.keys() == {0}


def test_each_seed_is_reported_at_the_finalist_that_is_best_on_the_others(tuned):
    accuracy = {
        1: {TUNING_SEED: 0.60, 0: 0.50, 1: 0.50, 2: 0.50},
        2: {TUNING_SEED: 0.70, 0: 0.40, 1: 0.49, 2: 0.58},
        4: {TUNING_SEED: 0.55, 0: 0.90, 1: 0.90, 2: 0.90},
    }
    pair, small, find = tuned(accuracy, 2)
    assert finalists(pair, small, find) == (2, 1), "4 was worse on the tuning seed"
    choice, results = played(pair, small, find)
    assert choice.by_seed == {0: 2, 1: 1, 2: 1}, "at 2 the others came to .535, .49 and .445"
    assert choice.text == "1.0 (2), 2.0 (1)"
    assert choice.at_edge, "1 is the smallest of the grid"
    assert {seed: result.accuracy["sums"][1] for seed, result in results.items()} == {0: 0.40, 1: 0.50, 2: 0.50}
    assert choice.on_reported_seeds == pytest.approx({2: 0.49, 1: 0.50})


def test_finalists_that_are_still_to_be_played(tuned):
    pair, small, find = tuned({1: {TUNING_SEED: 0.6}, 2: {TUNING_SEED: 0.7}, 4: {TUNING_SEED: 0.5}}, 2)
    choice, results = played(pair, small, find)
    assert (choice.text, choice.by_seed, results) == ("2.0, 1.0", {}, {})
    assert choice.on_reported_seeds == {2: None, 1: None}


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_what_a_seed_came_to_itself_has_no_say(own):
    finals = {1: {0: own, 1: 0.5, 2: 0.5}, 2: {0: 0.5, 1: 0.4, 2: 0.7}}
    assert best_by_others(0, finals) == 2


@pytest.mark.parametrize(
    ("finals", "value"),
    [
        pytest.param({2: {0: 0.1}, 1: {0: 0.9}}, 2, id="no other seed yet: the best on the tuning seeds"),
        pytest.param({2: {0: 0.1, 1: 0.5}, 1: {0: 0.9}}, 2, id="no other seed at both values"),
        pytest.param({2: {1: 0.9, 2: 0.9}, 1: {0: 0.1, 1: 0.1}}, 1, id="this seed is missing at the better one"),
        pytest.param({2: {0: 0.5, 1: 0.4, 2: 0.9}, 1: {0: 0.5, 1: 0.5}}, 1, id="seeds of one value alone do not count"),
        pytest.param({2: {0: 0.1, 1: 0.5}, 1: {0: 0.9, 1: 0.5}}, 2, id="equal"),
    ],
)
def test_of_a_study_that_is_not_finished(finals, value):
    assert best_by_others(0, finals) == value
