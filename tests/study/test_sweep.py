"""A study from a command line."""

from pathlib import Path

import pytest

from fgrpo.errors import ConfigError
from fgrpo.study.file import read_study
from fgrpo.study.plan import pairs
from fgrpo.study.sweep import split, sweep

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"


def test_several_values_of_one_key_are_arms_of_these_names():
    found = sweep(CONFIG, ["--seed", "0,1,2", "--aggregation.rule", "fedavg,fgrpo", "--rounds=3"])
    assert found.seeds == (0, 1, 2)
    assert [arm.name for arm in found.arms] == ["fedavg", "fgrpo"]
    assert found.reference == "fedavg"
    configs = [config for pair in pairs(found) for config in pair.configs.values()]
    assert [(config.aggregation.rule, config.rounds) for config in configs] == [("fedavg", 3), ("fgrpo", 3)]


def test_several_keys_are_all_combinations_and_baselines_take_the_fixed_ones():
    options = ["--train.lr", "1e-4,1e-3", "--server.lr", "1,2", "--rounds", "3"]
    found = sweep(CONFIG, options, "centralised,local")
    assert [arm.name for arm in found.arms][:2] == ["train.lr 1e-4, server.lr 1", "train.lr 1e-4, server.lr 2"]
    assert sweep(CONFIG, ["--train.lr", "1,2", "--aggregation.tau", "3,4"]).reference == "lr 1, tau 3"
    assert [(arm.name, dict(arm.overrides)) for arm in found.arms[4:]] == [
        ("centralised", {"rounds": "3"}),
        ("local", {"rounds": "3"}),
    ]


def test_a_configuration_alone_is_one_arm():
    assert [arm.name for arm in sweep(CONFIG, []).arms] == ["federated"]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("a", ["a"]),
        ("a, b", ["a", "b"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("{a: 1, b: [2, 3]},null", ["{a: 1, b: [2, 3]}", "null"]),
        ("'a,b',c", ["'a,b'", "c"]),
    ],
)
def test_commas_within_brackets_and_quotation_marks_are_left(value, parts):
    assert split(value) == parts


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--seed", "a"], "whole numbers"), (["rounds=1"], "expected --key value"), (["--rounds"], "expected a value")],
)
def test_a_wrong_option_is_one_line(options, words):
    with pytest.raises(ConfigError, match=words):
        sweep(CONFIG, options)


def test_a_sweep_is_called_one_and_counts_what_was_asked():
    found = sweep(CONFIG, ["--seed", "0,1", "--aggregation.rule", "fedavg,fgrpo"])
    assert f"{found.title}: {found.counts}" == f"sweep of {CONFIG}: 2 configurations x 2 seeds"
    assert sweep(CONFIG, [], "local").counts == "1 configuration and 1 baseline x 1 seed"


def test_a_sweep_leaves_a_studys_file_that_plays_the_same_cells(tmp_path):
    options = ["--seed=3,4", "--train.lr", "1e-4,1.0e-3", "--rollout.group_size", "4"]
    found = sweep(CONFIG, options, "local")
    assert found.text.splitlines()[0] == f"# fgrpo sweep {CONFIG} {' '.join(options)} --baselines local"
    (tmp_path / "study.yaml").write_text(found.text)
    read = read_study(tmp_path / "study.yaml")
    assert (read.seeds, read.reference) == ((3, 4), found.reference)

    def cells(study):
        return [cell.folder for pair in pairs(study) for cell in pair.reported(None, study.seeds)]

    assert cells(read) == cells(found)
