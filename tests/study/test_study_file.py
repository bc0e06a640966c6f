"""A study's file: what it means, and its mistakes in one line."""

from pathlib import Path

import pytest

from fgrpo.errors import ConfigError
from fgrpo.study.file import read_study
from fgrpo.study.plan import pairs

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
        pytest.param(
            "tune: {key: server.lr, grid: [1], seeds: [9], finalists: 0}",
            "tune.finalists: got 0, expected a whole number of at least 1",
            id="no finalist",
        ),
        pytest.param(
            "tune: {key: server.lr, grid: [1, 2], seeds: [9], finalists: 2}",
            "tune.finalists: a seed is reported at the finalist that is best on the others; expected two seeds or more",
            id="no other seed",
        ),
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
        ("{finalists: 2}", "arms.a.finalists: 2 needs a grid of its own"),
        ("{grid: [1, 2], finalists: 0}", "arms.a.finalists: got 0, expected a whole number of at least 1"),
        (
            "{grid: [1, 2], finalists: 2}",
            "arms.a.finalists: a seed is reported at the finalist that is best on the others",
        ),
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


def extending(tmp_path, lines, theirs="seeds: [3, 4]\nscenarios: {plain: {}, fixed: {server.lr: 3}}", folder="more"):
    """Write a study beside another that it extends, and return its path."""
    (tmp_path / "theirs.yaml").write_text(
        "base: {rounds: 5, clients: {a: {tasks: [{dataset: a.jsonl}]}}}\narms: {fedavg: {aggregation.rule: fedavg}}\n"
        f"output_dir: somewhere\n{theirs}\n"
    )
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / folder).mkdir(exist_ok=True)
    path = tmp_path / folder / "ours.yaml"
    path.write_text(f"extends: ../theirs.yaml\n{lines}\n")
    return path


def test_a_study_takes_from_another_what_it_does_not_say(tmp_path):
    ours = read_study(extending(tmp_path, "seeds: [1]"))
    assert (ours.name, ours.output_dir, ours.seeds) == ("ours", Path("studies/ours"), (1,)), "these are its own"
    assert ours.base["rounds"] == 5
    assert ours.base["clients"]["a"]["tasks"][0]["dataset"] == str(tmp_path / "a.jsonl"), (
        "beside the file that names it"
    )
    assert [arm.name for arm in ours.arms] == ["fedavg"]
    assert [scenario.name for scenario in ours.scenarios] == ["plain", "fixed"]
    assert "extends: ../theirs.yaml" in ours.text
    assert "output_dir: somewhere" in ours.text, "who reads the page sees the whole"


def test_a_study_may_pick_scenarios_of_another(tmp_path):
    ours = read_study(extending(tmp_path, "scenarios: [fixed]\narms: {fgrpo: {aggregation.rule: fgrpo}}"))
    assert [(s.name, dict(s.overrides)) for s in ours.scenarios] == [("fixed", {"server.lr": 3})]
    assert ([arm.name for arm in ours.arms], ours.reference) == (["fgrpo"], "fgrpo")


def test_a_study_may_put_scenarios_of_its_own_beside_those_of_another(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.jsonl").write_text("{}\n")
    own = "{on: {clients: {1: {tasks: [{dataset: b.jsonl}]}}}, two: {}}"
    ours = read_study(extending(tmp_path, f"scenarios: [fixed, {own}]"))
    assert [scenario.name for scenario in ours.scenarios] == ["fixed", "on", "two"], "names stay text"
    assert ours.scenarios[0].overrides == {"server.lr": 3}
    (found,) = ours.scenarios[1].overrides["clients"]["1"]["tasks"]
    assert Path(found["dataset"]).exists(), "paths are relative to the file"


def test_null_takes_nothing_from_the_other(tmp_path):
    theirs = "tune: {key: server.lr, grid: [1], seeds: [9]}"
    assert read_study(extending(tmp_path, "", theirs)).tune is not None
    assert read_study(extending(tmp_path, "tune: null", theirs)).tune is None


@pytest.mark.parametrize(
    ("lines", "theirs", "words"),
    [
        (
            "scenarios: [fixd]",
            "scenarios: {fixed: {}}",
            "scenarios: .*theirs.yaml has no 'fixd'; did you mean 'fixed'?",
        ),
        ("scenarios: [one]", "", "scenarios: .*theirs.yaml has no 'one'"),
        ("scenarios: [a, a]", "scenarios: {a: {}}", "scenarios: 'a' is there twice"),
        ("scenarios: [a, {a: {}}]", "scenarios: {a: {}}", "scenarios: 'a' is there twice"),
        ("scenarios: [[a]]", "scenarios: {a: {}}", r"scenarios: got \['a'\] in the list, expected a name, or a name"),
        ("scenarios: [a, null]", "scenarios: {a: {}}", "scenarios: got None in the list"),
        ("", "extends: more/ours.yaml", "extends: .*ours.yaml extends this study in turn"),
        ("", "extends: gone.yaml", r"study .*theirs.yaml: study .*gone.yaml cannot be read"),
        ("", "round: 3", r"study .*ours.yaml: study .*theirs.yaml: unknown key 'round'"),
        ("reference: none", "", "there is no arm 'none'"),
    ],
)
def test_a_mistake_in_what_a_study_extends_is_one_line(tmp_path, lines, theirs, words):
    with pytest.raises(ConfigError, match=words):
        read_study(extending(tmp_path, lines, theirs))
