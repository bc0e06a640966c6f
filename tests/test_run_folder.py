"""A round is on disk whole or not at all."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fgrpo.errors import RunError
from fgrpo.records import ClientHistory, Evaluation, ServerState
from fgrpo.residuals import Residuals
from fgrpo.run_folder import RunFolder


def state(number):
    return ServerState(
        number,
        torch.full((5,), float(number)),
        {"velocity": torch.ones(5)},
        {"a": ClientHistory(0.1, 0.2, number)},
        Residuals({"a.b": torch.arange(5.0)}),
    )


def evaluation(number):
    return Evaluation("a", number, 8, 0.5, 0.75)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "rounds: 3\n")
    for number in range(4):
        folder.commit(state(number), [evaluation(number)], {"a": b"payload"})
    return folder


def test_what_is_committed_comes_back(folder):
    back, expected = RunFolder.open(folder.path).load(), state(3)
    assert (back.round, back.history) == (3, expected.history)
    assert torch.equal(back.params_P, expected.params_P)
    assert torch.equal(back.optimizer["velocity"], expected.optimizer["velocity"])
    assert torch.equal(back.residuals["a.b"], expected.residuals["a.b"])
    assert list(folder.records()) == [evaluation(n) for n in range(4)]
    assert len(folder.metrics_file.read_text().splitlines()) == 4


def test_only_the_last_two_rounds_keep_their_state(folder):
    assert folder.load(2).round == 2
    with pytest.raises(RunError, match="the state of round 1 is not kept, only that of 2, 3"):
        folder.load(1)
    assert not (folder.path / "rounds/0001/payloads").exists()
    assert (folder.path / "rounds/0003/payloads/a.safetensors").read_bytes() == b"payload"


def test_a_half_written_round_is_not_there(folder):
    (folder.path / "rounds/.0004/payloads").mkdir(parents=True)
    (folder.path / "rounds/.0004/state.json").write_text('{"round": 4')
    with folder.metrics_file.open("a") as metrics:
        metrics.write('{"type": "evalua')
    assert folder.load().round == 3
    folder.reopen("rounds: 3\n", {})
    assert len(folder.metrics_file.read_text().splitlines()) == 4
    folder.commit(state(4), [evaluation(4)], {})
    assert folder.load().round == 4


def test_a_failed_write_leaves_the_rounds_before_it(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(RunError, match=r"round 4 cannot be saved: No space left.*fgrpo resume"):
            folder.commit(state(4), [], {})
    assert folder.load().round == 3


def test_a_folder_with_a_run_is_not_overwritten(folder):
    with pytest.raises(RunError, match=r"already holds a run.*fgrpo resume"):
        RunFolder.create(folder.path, "")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder.create(tmp_path / "file" / "run", "")


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(tmp_path)
    empty = RunFolder.create(tmp_path / "new", "")
    with pytest.raises(RunError, match="no whole round"):
        empty.load()


def committed(folder, number, heard, state=None):
    """Commit round `number`, in which some clients were heard; return the state to go on from."""
    state = state or folder.initial(torch.zeros(5))
    kept = {client: state.residuals.keep(client, torch.full((5,), float(number)), number) for client in heard}
    state = replace(state, round=number, residuals=state.residuals.updated(kept))
    return folder.commit(state, [], {})


def residual_files(folder):
    return sorted(str(file.relative_to(folder.path / "residuals")) for file in (folder.path / "residuals").rglob("*.*"))


def test_residuals_are_kept_while_a_kept_state_needs_them(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "")
    state = committed(folder, 1, ["a", "b"])
    state = committed(folder, 2, ["a"], state)
    assert residual_files(folder) == ["0001/a.safetensors", "0001/b.safetensors", "0002/a.safetensors"]
    state = committed(folder, 3, ["a"], state)
    assert residual_files(folder) == ["0001/b.safetensors", "0002/a.safetensors", "0003/a.safetensors"]
    state.residuals.keep("b", torch.ones(5), 4)  # of a round that was never committed
    for number, of_a in ((2, 2.0), (3, 3.0)):
        back = folder.load(number).residuals
        assert {client: residual_P[0].item() for client, residual_P in back.items()} == {"a": of_a, "b": 1.0}
    committed(folder, 4, [], state)
    assert residual_files(folder) == ["0001/b.safetensors", "0003/a.safetensors"]
    (folder.path / "residuals/0001/b.safetensors").unlink()
    with pytest.raises(RunError, match=r"round 4 cannot be read: .*residuals/0001/b.safetensors"):
        folder.load()


def test_residuals_within_the_state_as_earlier_releases_wrote_them(folder):
    """A client that takes no part in the next rounds keeps its residual although the old state goes."""
    old = folder.path / "rounds/0003"
    described = json.loads((old / "state.json").read_text())
    del described["residuals"]
    (old / "state.json").write_text(json.dumps(described))
    tensors = {"params": torch.full((5,), 3.0), "residual.a.b": torch.arange(5.0), "residual.c": torch.ones(5)}
    save_file(tensors, old / "state.safetensors")
    shutil.rmtree(folder.path / "residuals")
    state = folder.load()
    assert torch.equal(state.residuals["a.b"], torch.arange(5.0))
    for number in (4, 5, 6):
        state = committed(folder, number, ["c"], state)
    back = folder.load()
    assert torch.equal(back.residuals["a.b"], torch.arange(5.0))
    assert torch.equal(back.residuals["c"], torch.full((5,), 6.0))
    assert residual_files(folder) == ["0004/a.b.safetensors", "0005/c.safetensors", "0006/c.safetensors"]
