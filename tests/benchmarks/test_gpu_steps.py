"""The steps of `make gpu`: which are run, with what, and what comes of one that fails."""

import re
from itertools import pairwise

import gpu
import pytest
import torch


@pytest.fixture
def called(monkeypatch):
    """Each step's options in order; the steps end with these statuses instead of running anything."""
    calls = []
    statuses = {"test": 0, "measure": 3, "sweep": 1, "train": 0}
    for name, status in statuses.items():
        monkeypatch.setitem(gpu.STEPS, name, lambda options, n=name, s=status: calls.append((n, options)) or s)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return calls


def test_a_step_that_fails_stops_no_other(called):
    assert gpu.main(["test", "measure", "--rows", "2", "sweep", "train"]) == 3
    assert called == [(name, ["--rows", "2"]) for name in gpu.STEPS]


def test_tests_run_at_once_where_there_is_xdist(monkeypatch):
    ran = []
    monkeypatch.setattr(gpu, "run", lambda *words: ran.append(words) or 0)
    monkeypatch.setattr(gpu, "WORKERS", 4)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name == "xdist")
    assert gpu.test([]) == 0
    monkeypatch.setattr(gpu, "WORKERS", 0)
    gpu.test([])
    at_once, alone = ran
    assert ("-n", "4") in pairwise(at_once)
    assert "-n" not in alone
    assert [word for word in alone if word.endswith(".py")] == [f"tests/kernels/{name}" for name in gpu.TESTS]


def test_every_file_of_gpu_tests_is_run():
    named = {path.name for path in (gpu.ROOT / "tests" / "kernels").glob("test_*.py") if "mark.gpu" in path.read_text()}
    assert named <= set(gpu.TESTS)


def test_what_is_left_out_of_the_coverage_is_on_the_page():
    page = (gpu.ROOT / "docs" / "gpu.md").read_text()
    measured = [gpu.ROOT / folder for folder in ("benchmarks", "fgrpo_kernels", "tests/kernels")]
    lines = [line for folder in measured for path in folder.rglob("*.py") for line in path.read_text().splitlines()]
    marked = [line for line in lines if "pragma: no cover" in line]
    assert all(re.search(r"# pragma: no cover - \w", line) for line in marked), "say why"
    functions = {match[1] for line in marked if (match := re.match(r"def (\w+)", line))}
    assert functions == set(re.findall(r"`(test_\w+)`", page))


@pytest.mark.parametrize(
    ("arguments", "there", "message"),
    [
        pytest.param(
            ["--rows", "2"], True, "expected one or more of test, measure, sweep, train, got --rows 2", id="no step"
        ),
        pytest.param([], True, "got none", id="nothing"),
        pytest.param(["sweep"], False, "torch sees no GPU on this machine", id="no GPU"),
    ],
)
def test_mistakes(called, monkeypatch, arguments, there, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    with pytest.raises(SystemExit, match=message):
        gpu.main(arguments)
    assert called == []
