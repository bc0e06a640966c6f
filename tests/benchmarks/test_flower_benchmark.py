"""Rounds on Flower, ours and its FedAvg, in a simulation within this process."""

import json
import runpy
import sys
from types import SimpleNamespace

import bench_flower
import pytest

SMALL = {"rollout.prompts_per_step": 2, "rollout.group_size": 2, "rollout.max_new_tokens": 2, "train.local_steps": 1}


@pytest.fixture
def main(monkeypatch, tmp_path):
    """Runs it with options; what it would start runs in this process."""
    pytest.importorskip("flwr", reason="install fgrpo[flower]")
    import simulation

    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr("flwr.simulation.run_simulation", simulation.run_simulation)
    monkeypatch.setattr(bench_flower, "_policies", [])
    monkeypatch.setattr(bench_flower, "KEYS", bench_flower.KEYS | SMALL)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["bench_flower.py", *options])
        return bench_flower.main()

    def in_this_process(command, env, **_):
        assert env.items() >= bench_flower.ENVIRONMENT.items()
        run(*command[2:])

    monkeypatch.setattr(bench_flower, "subprocess", SimpleNamespace(run=in_this_process))
    return run


def test_both_contenders_play(main, tmp_path, monkeypatch, capsys):
    assert main("--nodes", "2", "--rounds", "1") == 0
    (path,) = tmp_path.glob("flower_*.json")
    records = json.loads(path.read_text())["results"]
    assert [(r["contender"], r["work"], len(r["rounds"])) for r in records] == [
        ("fgrpo", "training", 1),
        ("flower fedavg", "training", 1),
        ("fgrpo", "next to none", 1),
        ("flower fedavg", "next to none", 1),
    ]
    ours, theirs = (record["rounds"] for record in records[:2])
    float32 = theirs[0]["down"]
    assert all(played["up"] == played["down"] == float32 for played in theirs)
    assert all(0 < played["up"] < float32 / 7 for played in ours)
    assert ours[0]["down"] > 0
    assert all(0 < played["seconds"] > played["overhead"] for played in (*ours, *theirs))
    shown = capsys.readouterr().out
    assert "| flower fedavg | 2 | next to none |" in shown
    monkeypatch.setattr(sys, "argv", ["bench_flower.py", "--render", str(path)])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(bench_flower.__file__, run_name="__main__")
    assert capsys.readouterr().out.startswith("# Rounds on Flower\n")


def test_a_contender_that_fails_is_named(main, monkeypatch):
    failed = SimpleNamespace(stderr="why")
    monkeypatch.setattr(bench_flower, "subprocess", SimpleNamespace(run=lambda *_, **__: failed))
    with pytest.raises(SystemExit, match="fgrpo with 2 nodes failed:\nwhy"):
        main("--nodes", "2", "--rounds", "1")
