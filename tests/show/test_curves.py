"""The curves of a run: read back as TensorBoard reads them, and as wandb's and trackio's interface is given them."""

import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fgrpo.config import Config
from fgrpo.errors import ConfigError, RunError
from fgrpo.records import TEST_SET, Evaluation, Report, RoundSummary, Sample, Score, ServerState
from fgrpo.run_folder import RunFolder
from fgrpo.show.curves import round_texts, round_values
from fgrpo.show.sinks import curve_writer

CLIENTS = ("adder", "ward 7")


def records(number):
    reports = [
        Report(c, number, 64, 640, number * scale, 0.1, 10.0, 0.5, {"loss": 0.25, "entropy": 1.5}, {"train": 2.0})
        for c, scale in zip(CLIENTS, (1.0, 10.0), strict=True)
    ]
    reports[0] = replace(reports[0], heldout=Score(0.75, 0.5, 8))
    summary = RoundSummary(
        round=number,
        weights={"adder": 0.25, "ward 7": 0.75},
        gains={"adder": -0.5, "ward 7": 0.5},
        quarantined={},
        uplink_bytes={"adder": 100, "ward 7": 120},
        dense_bytes=800,
        update_norm=3.0,
        seconds={"clients": 4.0, "aggregate": 0.5},
    )
    samples = (Sample("1 + 1 =", "2", "3", 0.0, False),)
    evaluations = [
        Evaluation("adder", number, 8, 0.5, 0.75, samples),
        Evaluation("ward 7", number, 8, 1.0, 1.0),
        Evaluation(TEST_SET, number, 100, 0.25, 0.5),
    ]
    return [*reports, summary, *evaluations]


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", "rounds: 3\n")


def commit(folder, number):
    folder.commit(replace(ServerState.initial(torch.zeros(3)), round=number), records(number), {})


def curves(folder):
    """Return every curve as {tag: {step: value}}, and check that no step comes twice."""
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    read = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag, points in read.items():
        assert len(dict(points)) == len(points), tag
    return {tag: dict(points) for tag, points in read.items()}


def test_every_measure_has_its_curve(folder):
    with curve_writer(Config(), folder) as writer:
        for number in (1, 2):
            writer.stage("server", "clients")
            for record in records(number):
                writer.record(record)
    read = curves(folder)
    expected = {
        "reward/adder": {1: 1.0, 2: 2.0},
        "reward/ward 7": {1: 10.0, 2: 20.0},
        "degenerate/adder": {1: 0.5, 2: 0.5},
        "heldout/adder": {1: 0.75, 2: 0.75},
        "loss/adder": {1: 0.25, 2: 0.25},
        "entropy/ward 7": {1: 1.5, 2: 1.5},
        "weight/ward 7": {1: 0.75, 2: 0.75},
        "gain/adder": {1: -0.5, 2: -0.5},
        "accuracy/adder": {1: 0.5, 2: 0.5},
        "evaluation/mean_accuracy": {1: 0.75, 2: 0.75},
        "evaluation/mean_score": {1: 0.875, 2: 0.875},
        "evaluation/test_set_accuracy": {1: 0.25, 2: 0.25},
        "bytes/uplink": {1: 220.0, 2: 220.0},
        "bytes/float32": {1: 1600.0, 2: 1600.0},
        "time/train": {1: 4.0, 2: 4.0},  # two clients of 2 s
        "time/aggregate": {1: 0.5, 2: 0.5},
        "server/update_norm": {1: 3.0, 2: 3.0},
    }
    assert {tag: read[tag] for tag in expected} == expected


def test_curves_of_a_resumed_run_are_whole(folder):
    with curve_writer(Config(), folder) as writer:
        for number in (1, 2):
            for record in records(number):
                writer.record(record)
    (events,) = (folder.path / "tensorboard").iterdir()
    events.rename(events.with_name("events.out.tfevents.1"))  # files are read by name, which begins with the time
    commit(folder, 1)  # round 2 never got to disk; of round 1 all did
    with curve_writer(Config(), folder) as writer:
        for number in (2, 3):
            for record in records(number):
                writer.record(record)
    assert curves(folder)["reward/adder"] == {1: 1.0, 2: 2.0, 3: 3.0}


def test_a_round_that_was_saved_but_never_drawn_is_drawn_by_the_next_process(folder):
    commit(folder, 1)
    with curve_writer(Config(), folder):
        pass
    assert curves(folder)["reward/ward 7"] == {1: 10.0}


def test_samples_are_texts_beside_the_curves(folder):
    with curve_writer(Config(), folder) as writer:
        for record in records(1):
            writer.record(record)
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert events.Tags()["tensors"] == ["samples/adder/text_summary"]
    (text,) = round_texts(records(1)).values()
    assert text == "**prompt** 1 + 1 =\n\n**reference** 2\n\n**answer** (wrong) 3"


def test_the_test_set_is_no_client():
    assert "accuracy/test set" not in round_values(records(1))


class Library(SimpleNamespace):
    """What wandb and trackio have in common, as far as it is used; notes the calls."""

    def __init__(self):
        super().__init__(runs=[], steps=[], finished=0, __spec__="of a module that is there")

    def init(self, **options):
        self.runs.append(options)

    def log(self, values, step):
        self.steps.append((step, values))

    def finish(self):
        self.finished += 1

    def Table(self, columns, data):  # noqa: N802
        return columns, data


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_as_the_same_one_at_a_tracker(folder, name, monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "wards")
    config = Config(report_to=[name], seed=7)
    for first in (1, 3):
        with curve_writer(config, folder) as writer:
            for number in (first, first + 1):
                for record in records(number):
                    writer.record(record)
                writer.stage("server", "clients")
                commit(folder, number)
    assert [step for step, _ in library.steps] == [1, 2, 3, 4]
    values = library.steps[0][1]
    assert values["evaluation/mean_accuracy"] == 0.75
    assert values["samples"] == (["client", "samples"], [["samples/adder", round_texts(records(1))["samples/adder"]]])
    first, second = library.runs
    assert first == second, "the same run"
    assert (first["project"], first["resume"], first["config"]["seed"]) == ("wards", "allow", 7)
    assert "id" in first or first["name"] != "run", "nobody else's of that name"
    assert library.finished == 2


def test_a_round_that_was_saved_but_never_logged_is_logged_by_the_next_process(folder, monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "wandb", library)
    commit(folder, 1)
    with curve_writer(Config(report_to=["wandb"]), folder):
        pass
    assert [step for step, _ in library.steps] == [1]


def test_a_tracker_that_is_missing_or_refuses_is_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^report_to: wandb is not installed: pip install wandb$"):
        curve_writer(Config(report_to=["wandb"]), folder)

    def broken(name):
        raise ImportError("libfoo.so is missing")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(__spec__="of a module that is there"))
    with monkeypatch.context() as patched:
        patched.setattr("fgrpo.show.sinks.import_module", broken)
        with pytest.raises(ConfigError, match=r"^report_to: wandb is installed but cannot be imported: libfoo"):
            curve_writer(Config(report_to=["wandb"]), folder)

    def refuse(**options):
        raise ValueError("no API key")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse, __spec__="of a module that is there"))
    with ExitStack() as stack, pytest.raises(RunError, match=r"^report_to: wandb cannot start a run: no API key$"):
        stack.enter_context(curve_writer(Config(report_to=["wandb"]), folder))


def test_an_interrupt_waits_until_the_curves_are_written(folder, monkeypatch):
    class Interrupted(Library):
        def log(self, values, step):
            signal.raise_signal(signal.SIGINT)
            super().log(values, step)

    library = Interrupted()
    monkeypatch.setitem(sys.modules, "wandb", library)
    with curve_writer(Config(report_to=["wandb"]), folder) as writer:
        for record in records(1):
            writer.record(record)
        with pytest.raises(KeyboardInterrupt):
            writer.stage("server", "clients")
    assert [step for step, _ in library.steps] == [1]
    assert library.finished == 1
