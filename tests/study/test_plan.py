"""From a study to its cells."""

from dataclasses import replace

import pytest

from fgrpo.config import EngineConfig
from fgrpo.errors import ConfigError
from fgrpo.study.plan import options, pairs
from fgrpo.study.spec import Arm, Scenario


def planned(study):
    return {(pair.scenario.name, pair.arm.name): pair for pair in pairs(study)}


def test_scenarios_then_arms_change_the_base(study):
    found = planned(
        study(
            """
scenarios:
  few: {rollout.group_size: 2, aggregation.tau: 3, train: {local_steps: 7}}
  other: {clients: {on: {tasks: [*easy]}, 1: {tasks: [*easy]}}}
"""
        )
    )
    few, other = found["few", "<b>fgrpo</b>"].configs[None], found["other", "fedavg"].configs[None]
    assert (few.rollout.group_size, few.rollout.prompts_per_step) == (2, 4)
    assert (few.train.local_steps, few.train.lr) == (7, 1e-3), "a section's other keys stay"
    assert (few.aggregation.rule, few.aggregation.tau) == ("fgrpo", 0.5), "the arm has the last word"
    assert list(other.clients) == ["on", "1"], "clients are replaced, and their names are text"
    assert (other.evaluation.every, other.rounds) == (1, 1)
    assert other.engine == EngineConfig(workers=0, threads=1)


def test_who_is_tuned(study):
    found = planned(
        study(
            """
tune: {key: server.lr, grid: [1, 2, 4], seeds: [7, 8]}
baselines: [centralised]
scenarios: {plain: {}, fixed: {server: {lr: 3}}}
"""
        )
    )
    tuned = found["plain", "fedavg"]
    assert {value: config.server.lr for value, config in tuned.configs.items()} == {1.0: 1.0, 2.0: 2.0, 4.0: 4.0}
    assert [(cell.value, cell.seed, cell.config.seed) for cell in tuned.tuning()][:3] == [
        (1, 7, 7),
        (1, 8, 8),
        (2, 7, 7),
    ]
    assert list(found["fixed", "fedavg"].configs) == [None], "who sets the key runs at that value"
    assert found["fixed", "fedavg"].configs[None].server.lr == 3
    assert list(found["plain", "centralised"].configs) == [None], "it has no server"


def test_an_arm_may_have_a_grid_of_its_own(study):
    small = study("tune: {key: server.lr, grid: [1, 2], seeds: [7]}")
    adam = replace(small.arms[0], name="adam", overrides={"server.optimizer": "adam"}, grid=(1e-3, 1e-2))
    found = planned(replace(small, arms=(*small.arms, adam)))
    assert list(found["small", "adam"].configs) == [1e-3, 1e-2]


def test_a_baseline_may_have_a_tuned_key_of_its_own(study):
    small = study("tune: {key: server.lr, grid: [1, 2], seeds: [7]}")
    central = Arm("pooled", baseline="centralised", tune="train.lr", grid=(1, 1e-4))
    found = planned(replace(small, arms=(*small.arms, central)))
    assert {value: config.train.lr for value, config in found["small", "pooled"].configs.items()} == {
        1.0: 1.0,
        1e-4: 1e-4,
    }
    assert list(found["small", "fedavg"].configs) == [1.0, 2.0]


def test_a_part_of_a_study(study):
    small = study("scenarios: {one: {}, two: {}, three: {}}\nbaselines: [centralised, local]\nreference: <b>fgrpo</b>")
    part = small.part(["three", "one"], ["local", "fedavg"])
    assert [scenario.name for scenario in part.scenarios] == ["one", "three"]
    assert [arm.name for arm in part.arms] == ["fedavg", "<b>fgrpo</b>", "local"], "the reference stays"
    assert small.part() == small
    against = small.part(arms=["local"], reference="fedavg")
    assert (against.reference, [arm.name for arm in against.arms]) == ("fedavg", ["fedavg", "local"])
    with pytest.raises(ConfigError, match=r"there is no scenario 'tow'; did you mean 'two'\?"):
        small.part(["tow"])
    with pytest.raises(ConfigError, match=r"there is no arm 'fedavgs'; did you mean 'fedavg'\?"):
        small.part(arms=["fedavgs"])
    with pytest.raises(ConfigError, match=r"there is no arm 'locals'; did you mean 'local'\?"):
        small.part(reference="locals")


def test_a_baseline_has_neither_server_nor_wire(study):
    small = study("baselines: [local]\nscenarios: {s: {aggregation: {robust: trimmed_mean, trim: 1}, server.lr: 3}}")
    small = replace(small, arms=small.arms[-1:], reference="local", scenarios=(Scenario("s", {"server.lr": 3}),))
    config = planned(small)["s", "local"].configs[None]
    assert (config.server.lr, config.codec.codec, config.aggregation.robust) == (None, "none", "none")


def test_a_cells_folder_follows_from_its_configuration(study):
    def folders(more):
        return [pair.reported(None, [0])[0].folder for pair in pairs(study(more))]

    before = folders("")
    assert len(set(before)) == 2
    assert folders("seeds: [0, 1]") == before, "more seeds leave the first one's run as it is"
    assert folders("scenarios: {small: {evaluation.every: 1}}") == before, "said or by default, it is the same"
    assert not set(folders("scenarios: {small: {train.lr: 2.0e-3}}")) & set(before)
    assert all("<" not in str(folder) for folder in before)


def test_paths_are_relative_to_the_studys_file_and_name_no_cell(study, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    small = study("scenarios: {s: {clients: {a: {tasks: [{dataset: rows.jsonl}]}}}}")
    (cell,) = pairs(small)[0].reported(None, [0])
    assert cell.config.clients["a"].tasks[0].dataset == str(tmp_path / "rows.jsonl")
    assert cell.config.rewards.folder == str(tmp_path), "modules of reward functions lie beside it"
    moved = replace(cell, config=replace(cell.config, rewards=replace(cell.config.rewards, folder="/elsewhere")))
    assert moved.folder == cell.folder


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param("scenarios: {s: {train.lrr: 1}}", "did you mean 'train.lr'", id="unknown key"),
        pytest.param("scenarios: {s: {rollout.group_size: 1}}", "rollout.group_size: got 1", id="out of range"),
        pytest.param("scenarios: {s: {measure: x*}}", "no client is called x*", id="nobody measured"),
        pytest.param("tune: {key: server.lrr, grid: [1], seeds: [9]}", "did you mean 'server.lr'", id="tuned key"),
        pytest.param("tune: {key: server.lr, grid: [-1], seeds: [9]}", "server.lr: got -1", id="tuned value"),
    ],
)
def test_a_wrong_cell_is_found_before_any_is_played(study, more, words):
    with pytest.raises(ConfigError) as caught:
        pairs(study(more))
    assert "arm fedavg in scenario" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "/base.yaml" not in str(caught.value), "a file that is gone by then"


def test_overrides_as_options():
    assert options({"a": None, "b": "x: y", "c": [1, "1"], "d": 1e-3, "e": True}) == [
        "--a=null",
        "--b=x: y",
        "--c=[1, '1']",
        "--d=0.001",
        "--e=true",
    ]
