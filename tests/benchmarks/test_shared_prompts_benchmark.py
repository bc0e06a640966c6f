"""The benchmark of shared prompts at small sizes, both ways in this process."""

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from itertools import count
from types import SimpleNamespace

import bench_shared_prompts
import pytest

SIZES = ["--prompt", "12", "--completion", "3", "--group", "2", "--layers", "1"]


@pytest.fixture
def main(monkeypatch, tmp_path):
    """Runs it with options; returns its exit status and what it printed. What it would start runs in this process."""
    monkeypatch.setenv("OUT", str(tmp_path))

    def run(options):
        monkeypatch.setattr(sys, "argv", ["bench_shared_prompts.py", *options])
        with redirect_stdout(io.StringIO()) as printed:
            status = bench_shared_prompts.main()
        return status, printed.getvalue()

    def in_this_process(command, **_):
        return SimpleNamespace(stdout=run(command[2:])[1])

    monkeypatch.setattr(bench_shared_prompts, "subprocess", SimpleNamespace(run=in_this_process))
    return run


def test_both_ways_compute_the_same(main, monkeypatch, tmp_path):
    peaks = count(100.0, 10.0)  # of processes that begin afresh, which this one does not
    monkeypatch.setattr(bench_shared_prompts, "_peak_mib", lambda: next(peaks))
    status, printed = main([*SIZES, "--repetitions", "1"])
    assert status == 0
    assert "shared prompts: " in printed
    (path,) = tmp_path.glob("shared_prompts_*.json")
    shared, apart = json.loads(path.read_text())["results"]
    assert [run["tokens"] for run in (*shared["repetitions"], *apart["repetitions"])] == [12 + 2 * 2, 2 * (12 + 2)]
    assert "one row a sequence" in shared["headline"]["against"]
    assert "1.00 of its memory" in shared["headline"]["against"]


def test_the_peak_is_this_processs():
    before = bench_shared_prompts._peak_mib()
    held = bytearray(b"x" * (200 << 20))
    assert max(before, len(held) / 2**20) <= bench_shared_prompts._peak_mib() < before + 500


def test_ways_that_differ_give_no_ratio(main, monkeypatch, tmp_path):
    losses = iter([1.0, 2.0])
    run = {"seconds": 1.0, "tokens": 1, "peak_mib": 1.0, "added_mib": 1.0, "gradient_norm": 1.0}
    monkeypatch.setattr(bench_shared_prompts, "_measure", lambda arguments: run | {"loss": next(losses)})
    status, printed = main([*SIZES, "--repetitions", "1"])
    assert status == 1
    assert "failed: loss is 1.0 shared and 2.0 apart; no ratio is printed" in printed
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_shared_prompts.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(bench_shared_prompts.__file__, run_name="__main__")
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in (*bench_shared_prompts.SIZES, "repetitions"))
