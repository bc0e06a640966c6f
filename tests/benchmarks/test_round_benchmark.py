"""The round benchmark's turns, with contenders that play nothing: commands, environments, files."""

import json
import runpy
import signal
import sys

import bench_round
import pytest
import yaml
from process_tree import Samples
from rivals import fgrpo_loop
from rivals.record import Played, Round, Work


class Players:
    """In place of processes: each command's contender "plays" in this one, and is noted with its environment.

    Attributes:
        seconds: of a round, by contender; one that has none ends with a message instead.
        played: contender, client names, overrides and environment, in order.
    """

    def __init__(self, monkeypatch):
        self.seconds, self.played, self.clients = {"fgrpo": 1.0}, [], 1
        self.name = ""
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(bench_round, "watch", self.watch)
        monkeypatch.setattr(fgrpo_loop, "play", self.play)

    def watch(self, command, environment, log, *, interval, timeout):
        python, flag, module, self.name, *rest = command
        assert (python, flag, module) == (sys.executable, "-m", "rivals")
        seconds = self.seconds.get(self.name)
        if seconds is None:
            log.write_text("first line\nwhy it failed\n")
            return 1, 0.0, Samples()
        if seconds == "for ever":
            raise TimeoutError("not done after 7200 s")
        self.environment = environment
        self._monkeypatch.setattr(sys, "argv", ["rivals", "fgrpo", *rest])
        runpy.run_module("rivals", run_name="__main__")
        ends = [10.0, 10.0 + 100 * seconds]
        return 0, 4.0, Samples([0.0, *ends], [0.0, 1.0, 5.0], [10, 100 * self.clients, 10])

    def play(self, task):
        config = task.config()
        self.clients, seconds = len(config.clients), self.seconds[self.name]
        self.played.append((self.name, list(config.clients), config, self.environment))
        rounds, work = [], Work(64, 100, 16, 8, 0.5, 0.1, 1.0)
        for number in range(config.rounds):
            start = 10.0 + number * seconds
            rounds.append(Round(start, start + seconds, seconds * self.clients, {"clients": seconds}, 4000, work))
        return Played(rounds=rounds, after=dict.fromkeys(config.clients, 0.5))


@pytest.fixture
def players(monkeypatch, tmp_path):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(bench_round, "_missing", lambda name: None)
    return Players(monkeypatch)


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.yaml"
    tasks = [{"reasoning_gym": "gcd"}]
    file.write_text(yaml.safe_dump({"clients": {name: {"tasks": tasks} for name in ("a", "b")}, "rounds": 9}))
    return file


def results(tmp_path, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench_round.py", *map(str, arguments)])
    assert bench_round.main() == 0
    (path,) = (tmp_path / "out").glob("*.json")
    return json.loads(path.read_text())


def test_contenders_take_turns(players, config, tmp_path, monkeypatch, capsys):
    players.seconds |= {"trl+plain": 3.0}
    content = results(
        tmp_path, monkeypatch, "--config", config, "--rounds=2", "--repetitions=2", "--actors=3",
        "--ours=--engine.workers 2", "--rollout.group_size=4",
    )  # fmt: skip
    assert [name for name, *_ in players.played] == ["fgrpo", "trl+plain", "trl+plain", "fgrpo"]
    (_, _, ours, without_threads), (_, _, theirs, environment) = players.played[:2]
    assert (ours.engine.workers, theirs.engine.workers) == (2, type(theirs.engine)().workers)
    assert {c.rollout.group_size for c in (ours, theirs)} == {4}
    assert {c.rounds for c in (ours, theirs)} == {2}
    assert "OMP_NUM_THREADS" not in without_threads
    assert environment["OMP_NUM_THREADS"] == "3"
    fgrpo, flower, plain = content["results"]
    assert flower["not_measured"] == "it ended with status 1: why it failed"
    assert (plain["times_ours"], plain["startup_s"]) == (3.0, 6.0)
    assert fgrpo["headline"]["against"] == "trl+plain 6 s, 3 times as long"
    shown = capsys.readouterr()
    assert "# Seconds a round" in shown.out
    assert "trl+flower is not measured: it ended with status 1: why it failed" in shown.err
    assert "first line" in shown.err


def test_who_does_not_end_or_is_not_installed_is_named(players, config, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_round, "_missing", lambda name: "not installed: ray" if name == "trl+flower" else None)
    players.seconds |= {"trl+plain": "for ever"}
    three = "fgrpo,trl+flower,trl+plain"
    content = results(tmp_path, monkeypatch, "--config", config, "--rounds=1", "--repetitions=1", "--contenders", three)
    reasons = [record.get("not_measured") for record in content["results"]]
    assert reasons == [None, "not installed: ray", "not done after 7200 s"]


def test_more_clients(players, config, tmp_path, monkeypatch):
    content = results(tmp_path, monkeypatch, "--config", config, "--rounds=2", "--repetitions=1", "--clients", "2,5")
    assert [names for _, names, *_ in players.played] == [["a-0", "b-1"], ["a-0", "b-1", "a-2", "b-3", "a-4"]]
    assert {config.evaluation.prompts for _, _, config, _ in players.played} == {8}
    assert content["slopes"] == {"seconds": 1.0, "bytes": 100.0}


def test_a_slope_needs_every_number(players, config, tmp_path, monkeypatch):
    players.seconds.clear()
    with pytest.raises(SystemExit, match=r"bench_round: 2 clients: it ended with status 1: why it failed"):
        results(tmp_path, monkeypatch, "--config", config, "--clients", "2,5")


def test_nobody_to_repeat(players, tmp_path, monkeypatch):
    (tmp_path / "empty.yaml").write_text("clients: {}\n")
    with pytest.raises(SystemExit, match=r"empty\.yaml has no clients to repeat"):
        results(tmp_path, monkeypatch, "--config", tmp_path / "empty.yaml", "--clients", "2,5")


def test_what_a_contender_lacks(monkeypatch):
    monkeypatch.setattr(bench_round.importlib.util, "find_spec", lambda name: None if name == "ray" else name)
    assert bench_round._missing("trl+flower") == "not installed: ray"
    assert bench_round._missing("fgrpo") is None


def test_an_interruption_leaves_a_line(monkeypatch):
    """Whether by a key or a signal."""

    def interrupt(paths):
        raise KeyboardInterrupt

    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr("round_tables.render", interrupt)
    monkeypatch.setattr(sys, "argv", ["bench_round.py", "--render", "x.json"])
    with pytest.raises(SystemExit, match=r"^bench_round: interrupted; nothing is written$"):
        runpy.run_path(bench_round.__file__, run_name="__main__")
    assert handlers == {signal.SIGTERM: signal.default_int_handler}
