"""The curves of a run, read back as TensorBoard reads them."""

from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fgrpo.records import Evaluation, Report, RoundSummary, ServerState
from fgrpo.run_folder import RunFolder
from fgrpo.show.tensorboard import TensorBoardWriter

CLIENTS = ("adder", "ward 7")


def records(number):
    reports = [
        Report(c, number, 64, 640, number * scale, 0.1, 10.0, 0.5, {"loss": 0.25, "entropy": 1.5}, {"train": 2.0})
        for c, scale in zip(CLIENTS, (1.0, 10.0), strict=True)
    ]
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
    return [*reports, summary, Evaluation("adder", number, 8, 0.5, 0.75)]


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
    with TensorBoardWriter(folder) as writer:
        for number in (1, 2):
            writer.stage("server", "clients")
            for record in records(number):
                writer.record(record)
    read = curves(folder)
    expected = {
        "reward/adder": {1: 1.0, 2: 2.0},
        "reward/ward 7": {1: 10.0, 2: 20.0},
        "degenerate/adder": {1: 0.5, 2: 0.5},
        "loss/adder": {1: 0.25, 2: 0.25},
        "entropy/ward 7": {1: 1.5, 2: 1.5},
        "weight/ward 7": {1: 0.75, 2: 0.75},
        "gain/adder": {1: -0.5, 2: -0.5},
        "accuracy/adder": {1: 0.5, 2: 0.5},
        "bytes/uplink": {1: 220.0, 2: 220.0},
        "bytes/float32": {1: 1600.0, 2: 1600.0},
        "time/train": {1: 4.0, 2: 4.0},  # two clients of 2 s
        "time/aggregate": {1: 0.5, 2: 0.5},
        "server/update_norm": {1: 3.0, 2: 3.0},
    }
    assert {tag: read[tag] for tag in expected} == expected


def test_curves_of_a_resumed_run_are_whole(folder):
    with TensorBoardWriter(folder) as writer:
        for number in (1, 2):
            for record in records(number):
                writer.record(record)
    (events,) = (folder.path / "tensorboard").iterdir()
    events.rename(events.with_name("events.out.tfevents.1"))  # files are read by name, which begins with the time
    commit(folder, 1)  # round 2 never got to disk; of round 1 all did
    with TensorBoardWriter(folder) as writer:
        for number in (2, 3):
            for record in records(number):
                writer.record(record)
    assert curves(folder)["reward/adder"] == {1: 1.0, 2: 2.0, 3: 3.0}


def test_a_round_that_was_saved_but_never_drawn_is_drawn_by_the_next_process(folder):
    commit(folder, 1)
    with TensorBoardWriter(folder):
        pass
    assert curves(folder)["reward/ward 7"] == {1: 10.0}
