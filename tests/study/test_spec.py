"""A study's file: what it means, and its mistakes in one line."""

from pathlib import Path

import pytest

from fgrpo.errors import ConfigError
from fgrpo.study.plan import pairs
from fgrpo.study.spec import read_study

ROOT = Path(__file__).parents[2]


def test_what_a_file_leaves_out(study):
    small = study()
    assert (small.reference, small.seeds, small.last, small.tune, small.keep) == ("fedavg", (0,), 3, None, False)
    assert [scenario.name for scenario in small.scenarios] == ["small"]


def test_a_number_of_seeds_and_baselines_are_short_forms(study):
    small = study("seeds: 3\nbaselines: [local, centralised]")
    assert small.seeds == (0, 1, 2)
    assert [(arm.name, arm.baseline) for arm in small.arms[2:]] == [("local", "local"), ("centralised", "centralised")]


@pytest.mark.parametrize("path", sorted((ROOT / "configs/studies").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_studies_can_be_planned(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    read = read_study(path)
    assert len(pairs(read)) == len(read.arms) * len(read.scenarios)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param("round: 3", "unknown key 'round'; did you mean 'rounds'?", id="unknown key"),
        pytest.param("reference: fedavgg", "no arm 'fedavgg'; did you mean 'fedavg'?", id="reference"),
        pytest.param("baselines: [central]", "baselines: 'central' is none of", id="baseline"),
        pytest.param("seeds: [0, 0]", "seeds: a seed is there twice", id="seed twice"),
        pytest.param("seeds: many", "seeds: got 'many'", id="seeds"),
        pytest.param("rounds: 0", "rounds: got 0", id="rounds"),
        pytest.param("tune: {key: server.lr, grid: [1]}", "tune.seeds: it is missing", id="tune"),
        pytest.param("tune: {key: server.lr, grid: [1], seeds: [0]}", "tune.seeds: 0 is also reported", id="leak"),
        pytest.param("scenarios: {a b: {}, a/b: {}}", "'a b' and another name", id="same folder"),
        pytest.param("scenarios: [a]", "scenarios: it holds ['a']", id="not a mapping"),
        pytest.param("keep: maybe", "keep: got 'maybe'", id="keep"),
    ],
)
def test_a_mistake_is_one_line(study, more, words):
    with pytest.raises(ConfigError) as caught:
        study(more)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("{tune: 1, grid: [1]}", "arms.a.tune: got 1, expected a key of the configuration"),
        ("{tune: train.lr}", "arms.a.tune: train.lr needs a grid of its own"),
        ("{tune: train.lr, grid: 1}", "arms.a.grid: got 1, expected a list"),
    ],
)
def test_a_mistake_in_what_an_arm_tunes_is_one_line(arm, words, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(f"base: {{}}\ntune: {{key: server.lr, grid: [1], seeds: [9]}}\narms: {{a: {arm}}}\n")
    with pytest.raises(ConfigError) as caught:
        read_study(file)
    assert words in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match="cannot be read"):
        read_study("/nowhere/study.yaml")
