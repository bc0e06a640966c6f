"""Cells over processes, with players that need no model."""

import multiprocessing
from dataclasses import replace

import pytest
from players import Player

from fgrpo.study import tables
from fgrpo.study.agenda import Agenda
from fgrpo.study.comparison import rows, runs
from fgrpo.study.plan import pairs
from fgrpo.study.pool import play_all
from fgrpo.study.run import finder
from fgrpo.study.spec import Arm
from fgrpo.study.tuning import finalists


class Watcher:
    def __init__(self):
        self.reasons = {}

    def begun(self, cell):
        self.reasons[cell.name] = "at work"

    def advanced(self, cell, turns):
        assert self.reasons[cell.name] == "at work"

    def ended(self, cell, reason):
        self.reasons[cell.name] = reason


def play(small, root, jobs):
    root.mkdir(exist_ok=True)
    planned, watcher = pairs(small), Watcher()
    agenda = Agenda(small, planned, finder(root))
    play_all(agenda, Player(root), jobs, watcher)
    assert {cell.name: reason for cell, reason in agenda.failures.items()} == {
        name: reason for name, reason in watcher.reasons.items() if reason is not None
    }
    return planned, watcher.reasons


def played(root):
    return (root / "played.txt").read_text().splitlines()


TUNED = "seeds: [0, 1]\ntune: {key: server.lr, grid: [1, 2, 4], seeds: [7]}"


@pytest.mark.parametrize("jobs", [0, 2])
def test_values_are_tuned_and_the_best_is_reported(study, tmp_path, jobs):
    small = study(TUNED)
    planned, reasons = play(small, tmp_path / "cells", jobs)
    assert set(reasons.values()) == {None}
    assert len(played(tmp_path / "cells")) == 2 * (3 + 2)
    choices = [run.choice for run in runs(small, planned, finder(tmp_path / "cells"))]
    assert [choice.by_seed for choice in choices] == [{0: 2.0, 1: 2.0}] * 2
    assert not any(choice.at_edge for choice in choices)
    reported = [name for name in played(tmp_path / "cells") if "tuning" not in name]
    assert sorted(name[-1] for name in reported) == ["0", "0", "1", "1"]
    # Two processes end in any order.
    assert jobs or [name[-1] for name in reported] == ["0", "0", "1", "1"], (
        "seed by seed: an early end leaves whole comparisons"
    )


def test_finalists_are_played_with_the_reported_seeds(study, tmp_path):
    small = study(TUNED.replace("seeds: [7]}", "seeds: [7], finalists: 2}"))
    planned, _ = play(small, tmp_path / "cells", 0)
    reported = [name for name in played(tmp_path / "cells") if "tuning" not in name and "fedavg" in name]
    assert reported == [f"small / fedavg at {value} / seed {seed}" for seed in (0, 1) for value in (2.0, 1.0)]
    found = runs(small, planned, finder(tmp_path / "cells"))
    assert [run.choice.by_seed for run in found] == [{0: 2.0, 1: 2.0}] * 2
    (table,) = tables.tuning_tables(small, found)
    assert table.columns == ("scenario", "arm", "seeds", "1.0", "2.0", "4.0", "chosen")
    assert table.rows[:2] == (
        ("small", "fedavg", "tuning", "45.0%", "47.0%", "43.0%", ""),
        ("small", "fedavg", "reported", "38.5%", "40.5%", "-", "2.0"),
    )


def test_an_arm_may_have_fewer_finalists_than_the_others(study, tmp_path):
    small = study(TUNED.replace("seeds: [7]}", "seeds: [7], finalists: 2}"))
    first, second = small.arms
    small = replace(small, arms=(first, replace(second, grid=(1, 2, 4), finalists=1)))
    planned, _ = play(small, tmp_path / "cells", 0)
    assert [len(finalists(pair, small, finder(tmp_path / "cells"))) for pair in planned] == [2, 1]
    reported = [name for name in played(tmp_path / "cells") if "tuning" not in name]
    assert sum(first.name in name for name in reported) == 2 * sum(second.name in name for name in reported) == 4
    assert not Agenda(small, planned, finder(tmp_path / "cells")).left()


def test_each_tuned_key_has_its_table(study, tmp_path):
    small = study(TUNED)
    pooled = Arm("pooled", baseline="centralised", tune="train.lr", grid=(1e-3, 1e-4))
    small = replace(small, arms=(small.arms[0], pooled))
    planned, _ = play(small, tmp_path / "cells", 0)
    found = runs(small, planned, finder(tmp_path / "cells"))
    first, second = tables.tuning_tables(small, found)
    assert (first.title, first.columns) == (
        "Tuning of server.lr: accuracy on the tuning seeds",
        ("scenario", "arm", "1.0", "2.0", "4.0", "chosen"),
    )
    assert (second.title, second.columns) == (
        "Tuning of train.lr: accuracy on the tuning seeds",
        ("scenario", "arm", "0.0001", "0.001", "chosen"),
    )
    table = tables.scenario_table(small, "small", rows(small, found))
    assert [line[:2] for line in table.rows] == [("fedavg", "2.0"), ("pooled", "train.lr 0.001!")]


def test_finished_cells_are_not_played_again(study, tmp_path):
    root = tmp_path / "cells"
    play(study(TUNED), root, 0)
    before = played(root)
    play(study(TUNED), root, 0)
    assert played(root) == before
    play(study(TUNED.replace("[0, 1]", "[0, 1, 2]")), root, 0)
    assert played(root)[len(before) :] == ["small / fedavg at 2.0 / seed 2", "small / <b>fgrpo</b> at 2.0 / seed 2"]


def test_a_grid_that_grows_is_not_counted_anew(study, tmp_path):
    root = tmp_path / "cells"
    small = study(TUNED)
    play(small, root, 0)
    larger = study(TUNED.replace("[1, 2, 4]", "[1, 2, 4, 8]"))
    left = Agenda(larger, pairs(larger), finder(root)).left()
    assert [cell.name.partition(" at ")[2] for cell in left] == ["8.0 / seed 7 (tuning)"] * 2


@pytest.mark.parametrize("jobs", [0, 1, 2])
def test_a_cell_that_fails_ends_no_other(study, tmp_path, jobs):
    small = with_arms(study(), "failing", "broken", *(["dying"] if jobs else []), "last")
    _, reasons = play(small, tmp_path / "cells", jobs)
    reasons = {name.split(" / ")[1]: reason for name, reason in reasons.items()}
    assert reasons["failing"] == "no luck"
    assert reasons["broken"] == "ZeroDivisionError: by zero"
    assert not jobs or "was killed (SIGKILL)" in reasons["dying"]
    assert reasons["last"] is reasons["fedavg"] is None


def test_an_arm_whose_tuning_fails_at_some_values_is_tuned_over_the_others(study, tmp_path):
    small = with_arms(study(TUNED), "broken")
    planned, reasons = play(small, tmp_path / "cells", 0)
    assert [name for name, reason in reasons.items() if reason] == [
        f"small / broken at {value} / seed 7 (tuning)" for value in (1.0, 2.0, 4.0)
    ], "and without any value nothing is reported"
    assert finalists(planned[-1], small, finder(tmp_path / "cells")) == ()


def test_an_interrupt_ends_the_study_and_its_processes(study, tmp_path):
    class Interrupted(Watcher):
        def begun(self, cell):
            super().begun(cell)
            if "sleeping" in cell.name:
                raise KeyboardInterrupt

    small, before = with_arms(study(), "sleeping"), multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        play_all(Agenda(small, pairs(small), finder(tmp_path)), Player(tmp_path), 1, Interrupted())
    assert multiprocessing.active_children() == before
    assert play(study(), tmp_path, 0)[1] == {}, "what was finished before is kept"


def with_arms(small, *names):
    return replace(small, arms=(*small.arms, *(Arm(name) for name in names)))
