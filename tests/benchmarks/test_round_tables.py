"""From what contenders played to the page: the figures, and the Markdown."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from process_tree import Samples
from round_results import equal_work, headline, repetition, slope, summary, times_ours

FIXTURES = Path(__file__).parent / "fixtures"
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_round.py"
SAMPLES = Samples([0.0, 10.0, 12.0, 16.0, 30.0], [0.0, 10.0, 14.0, 22.0, 30.0], [900, 500, 700, 600, 800])


def played(*seconds, **fields):
    """Rounds that begin at 10 and run without a pause."""
    rounds, start = [], 10.0
    for number, length in enumerate(seconds):
        work = {"sequences": 64, "tokens": 100, "groups": 16, "informative": 8 + number}
        rounds.append(
            {
                "start": start,
                "end": start + length,
                "seconds": length,
                "stages": {"clients": length - 0.5},
                "uplink_bytes": 4000,
                "work": {**work, "rollout_s": 0.5, "reward_s": 0.1, "train_s": 1.0},
            }
        )
        start += length
    return {"ready": None, "rounds": rounds, "before": {}, "after": {"sums": 0.5}, **fields}


def test_the_first_round_stands_apart():
    figures = repetition(played(2.0, 1.0, 3.0), 4.0, SAMPLES)
    assert figures["startup_s"] == 6.0
    assert figures["round_s"] == [2.0, 1.0, 3.0]
    assert figures["cpu_s"] == (22.0 - 14.0) / 2  # from 12 to 16, two rounds
    assert figures["peak_bytes"] == 700  # from 10 to 16, the first round too
    assert (figures["informative"], figures["groups"]) == (9.5, 16)
    assert figures["tokens_per_s"] == {"rollout": 200.0, "train": 100.0}
    assert figures["stages_s"] == {"clients": 1.5}


def test_an_only_round_counts():
    figures = repetition(played(2.0, ready=8.0), 4.0, SAMPLES)
    assert (figures["startup_s"], figures["cpu_s"], figures["informative"]) == (4.0, 4.0, 8)
    assert summary("fgrpo", [figures])["round_s"] == {"median": 2.0, "min": 2.0, "max": 2.0, "count": 1}


def test_repetitions_are_compared_turn_by_turn():
    ours = summary("fgrpo", [repetition(played(9.0, *rounds), 0.0, SAMPLES) for rounds in [(1, 2), (4, 4), (1, 1)]])
    theirs = summary("trl", [repetition(played(9.0, *rounds), 0.0, SAMPLES) for rounds in [(3, 6), (8, 8), (5, 5)]])
    assert ours["round_s"] == {"median": 1.5, "min": 1, "max": 4, "count": 6}
    assert ours["first_round_s"] == 9.0
    assert times_ours(theirs, ours) == 3.0  # of 3, 2 and 5
    theirs["times_ours"], slower = 3.0, {**theirs, "name": "slower", "round_s": {"median": 7.0}, "times_ours": 9.0}
    assert headline("quickstart", ours, [slower, theirs]) == {
        "what": "a federated round, quickstart",
        "figure": "1.5 s",
        "against": "trl 5.5 s, 3 times as long",
    }


def test_equal_work():
    assert equal_work([{"informative": 100}, {"informative": 105}])
    assert not equal_work([{"informative": 106}, {"informative": 100}, {"informative": 103}])


def test_slope():
    assert slope([4, 8, 16], [1.0, 3.0, 7.0]) == pytest.approx(0.5)


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_render():
    result = run("--render", FIXTURES / "clients_sample.json", FIXTURES / "round_sample.json")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "# Seconds a round"
    assert [line for line in lines if line.startswith("## ")] == ["## quickstart", "## quickstart: clients"]
    for line in [
        "AMD EPYC, 2 cores, load 0.2 before; 2026-11-28, commit c14e814ee.",
        "torch 2.13.0+cpu, transformers 5.23.0, trl 1.16.0.",
        "Rounds: 3; repetitions, in turns: 2; every contender with `--evaluation.prompts 16`; "
        "fgrpo with `--engine.workers 2`.",
        "| | fgrpo | trl+plain |",
        "| seconds a round, median (range) | **1.50** (1.25 to 1.75) | **7.50** |",
        "| times fgrpo's, median of the repetitions | - | 5.00 |",
        "| uplink a round, bytes | 1,508,800 | 11,347,968 |",
        "| informative groups a round | 198.5 of 256 | 180.0 of 256 |",
        "| accuracy, legs | 25.0 → 56.2% | 25.0 → 31.2% |",
        "The contenders' informative groups differ by more than 5%: the times are not of equal work.",
        "trl+flower was not measured: not installed: flwr, ray.",
        "| 8 | 3.70 | 6.00 | 676 |",
        "Another client costs 0.400 s a round and 9.50 MB.",
    ]:
        assert line in lines


def test_nothing_measured(tmp_path):
    content = json.loads((FIXTURES / "round_sample.json").read_text())
    content["results"] = [record for record in content["results"] if "not_measured" in record]
    (tmp_path / "round.json").write_text(json.dumps(content))
    result = run("--render", tmp_path / "round.json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith("trl+flower was not measured: not installed: flwr, ray.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders", "fgrpo,flower"], "'flower' is none of fgrpo, trl+flower, trl+plain"),
        (["--clients", "4"], "a slope needs at least two different numbers of clients, got 4"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
