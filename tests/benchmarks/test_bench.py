"""How contenders are run and written down; with contenders that are made up, so that nothing is measured."""

import dataclasses
import json
import subprocess
import sys
from itertools import count
from types import ModuleType

import pytest
import torch

from fgrpo_kernels import _C
from fgrpo_kernels.bench import memory, ops, runner
from fgrpo_kernels.bench.__main__ import main
from fgrpo_kernels.bench.case import Case, NotHereError, Options, WrongResultError, require_close
from fgrpo_kernels.bench.clock import HostClock, Turn
from fgrpo_kernels.bench.machine import header
from fgrpo_kernels.bench.packages import whereabouts
from fgrpo_kernels.bench.results import ResultFile, load, series
from fgrpo_kernels.bench.runner import measure
from fgrpo_kernels.bench.session import busy_with
from fgrpo_kernels.bench.shapes import MODELS

HEADER = {"device": "A CPU, 2 cores", "date": "2026-12-01T10:00:00+00:00", "commit": "0123456789"}
SMALL = Options(threads=1, rows=2, parameters=256, rounds=1)


class FixedClock:
    """Seconds as each run says, instead of a clock's."""

    def turns(self, turns, rounds):
        return [[turn.run() for _ in range(rounds)] for turn in turns]


def taking(*seconds):
    """A contender whose calls take these seconds, in turns."""

    def make(data):
        numbers = count()
        return lambda: seconds[next(numbers) % len(seconds)]

    return make


def raising(error):
    def make(data):
        raise error

    return make


def case(contenders, **fields):
    def check(make):
        if make(None)() > 9:
            raise WrongResultError("too slow to be right")

    fields = {"name": "a case", "inputs": lambda: None, "check": check, "shape": {"rows": 2}, **fields}
    return Case(contenders=contenders, **fields)


@pytest.fixture
def measured(monkeypatch):
    """Records by contender, without a clock and without the machine's limits."""
    monkeypatch.setattr(runner, "clock_of", lambda device: FixedClock())
    monkeypatch.setattr(runner, "copy_bandwidth", lambda device: 100.0)
    monkeypatch.setattr(runner, "peak_bytes", lambda run, device: 7)
    monkeypatch.setattr(runner, "settle", lambda runs, seconds: None)
    options = Options(threads=1, rounds=4)
    return lambda *cases, **chosen: list(measure(cases, dataclasses.replace(options, **chosen)))


def test_each_is_timed_in_turns_with_ours(measured):
    ours, theirs = measured(case({"fgrpo": taking(1.0, 3.0), "eager": taking(4.0, 6.0)}, moved=50, work=(10, "rows")))
    assert (ours["median_s"], ours["low_s"], ours["high_s"]) == (2.0, 1.0, 3.0)
    assert (ours["rate"], ours["fraction_of_limit"], ours["limit"], ours["peak_bytes"]) == (5.0, 0.25, "copy", 7)
    assert theirs["times_ours"] == 3.0  # of 4 and 2, which no quotient of medians gives
    assert (theirs["pairs"], theirs["times_ours_95"]) == ([4.0, 2.0, 4.0, 2.0], (2.0, 4.0))
    assert "times_ours" not in ours


def test_a_turn_of_something_short_begins_with_a_call_that_is_not_timed(measured):
    seen = []

    class WatchingClock(FixedClock):
        def turns(self, turns, rounds):
            seen.append((rounds, [(turn.calls, turn.warm) for turn in turns]))
            return super().turns(turns, rounds)

    runner.clock_of = lambda device: WatchingClock()  # the fixture puts the real one back
    short, _ = measured(case({"fgrpo": taking(1e-4), "eager": taking(0.5)}))
    assert seen[:3] == [(1, [(1, False)]), (1, [(50, True)]), (4, [(50, True)])]
    assert seen[-1] == (4, [(50, True), (1, False)])
    assert short["seconds"] == [1e-4] * 4


def test_whoever_fails_is_named_and_stops_nobody(measured):
    class BrokenError(Exception):
        pass

    contenders = {
        "fgrpo": taking(1.0),
        "liger": raising(ModuleNotFoundError("no", name="liger_kernel")),
        "quack": raising(ModuleNotFoundError("no", name="cutlass.base")),
        "trl": taking(99.0),
        "piquant": raising(NotHereError("needs a GPU")),
        "flower": raising(torch.OutOfMemoryError("9 GiB")),
        "compile": raising(BrokenError("\n  first line\nsecond")),
        "eager": taking(2.0),
    }
    records = measured(case(contenders))
    assert {r["contender"]: r["not_measured"] for r in records if "not_measured" in r} == {
        "liger": "not installed: pip install liger-kernel",
        "quack": "not installed: cutlass.base",
        "trl": "wrong result: too slow to be right",
        "piquant": "needs a GPU",
        "flower": "out of memory",
        "compile": "BrokenError: first line",
    }
    assert records[-1]["times_ours"] == 2.0


def test_without_ours_nothing_of_the_case_is_timed(measured):
    first, second = measured(
        case({"fgrpo": taking(99.0), "eager": taking(1.0)}), case({"fgrpo": taking(1.0)}, name="b")
    )
    assert first["not_measured"].startswith("wrong result")
    assert second["median_s"] == 1.0


def test_a_case_without_inputs_stops_nobody(measured):
    first, second = measured(case({"fgrpo": taking(1.0)}, inputs=lambda: 1 / 0), case({"fgrpo": taking(1.0)}))
    assert first["not_measured"] == "ZeroDivisionError: division by zero"
    assert second["median_s"] == 1.0


def test_only_what_is_asked_for(measured):
    contenders = {"fgrpo": taking(1.0), "trl, rows": taking(1.0), "trl": taking(1.0), "eager": taking(1.0)}
    cases = [case(contenders, name=name) for name in ("forward", "backward")]
    records = measured(*cases, against=("trl",), only="back")
    assert [r["name"] for r in records] == ["backward: fgrpo", "backward: trl, rows", "backward: trl"]


def test_the_headline_is_against_the_fastest_of_others(measured):
    contenders = {"fgrpo": taking(0.5), "fgrpo, otherwise": taking(0.1), "a": taking(4.0), "b": taking(2.0)}
    ours = measured(case(contenders, in_readme="a thing"))[0]
    assert ours["headline"] == {
        "what": "a thing",
        "figure": "500 ms",
        "against": "b 2 s, 4.00 [4.00, 4.00] times as long",
    }
    ours = measured(case(contenders, in_readme="a thing", work=(2e9, "rows"), describe=lambda seconds: {"bytes": 3}))[0]
    assert (ours["headline"]["figure"], ours["bytes"]) == ("4e9 rows/s", 3)


def test_the_clock_takes_turns():
    order = []
    turns = [Turn(lambda: order.append("a"), calls=2), Turn(lambda: order.append("b"), warm=True)]
    seconds = HostClock().turns(turns, 2)
    assert order == ["a", "a", "b", "b"] * 2
    assert [len(taken) for taken in seconds] == [2, 2]


def test_nan_is_never_right():
    with pytest.raises(WrongResultError, match=r"loss: relative error nan, expected below 1e\+01"):
        require_close("loss", torch.tensor([float("nan")]), torch.ones(1), 10.0)


def test_a_file_is_whole_after_every_record(tmp_path):
    file = ResultFile("op", HEADER, tmp_path, op="op")
    assert file.path.name == "op_A-CPU-2-cores_2026-12-01.json"
    for number in (1, 2):
        file.add({"name": str(number)})
        assert len(json.loads(file.path.read_text())["results"]) == number
    assert load([tmp_path]) == {file.path: file.content}
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name]


def test_a_second_run_of_a_day_leaves_the_first(tmp_path):
    files = [ResultFile("op", HEADER, tmp_path, op="op").path for _ in range(3)]
    assert [path.stem.partition("cores_")[2] for path in files] == ["2026-12-01", "2026-12-01-2", "2026-12-01-3"]
    assert {series(path) for path in files} == {"op_A-CPU-2-cores"}


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match=r"x\.json is no file of results"):
        load([tmp_path])


def test_the_commit_of_a_copy_without_history(monkeypatch):
    monkeypatch.setenv("COMMIT", "abc")
    assert header()["commit"] == "abc"
    monkeypatch.delenv("COMMIT")
    monkeypatch.setenv("PATH", "")
    assert header(packages=["no-such-package"]).items() >= {"commit": None, "no-such-package": None}.items()


@pytest.mark.parametrize("op", [op for op in ops.OPS if op != "device_codec"])
def test_ours_is_right_in_every_case(op):
    """On small inputs; `--only` and the plots go by names, so they differ."""
    cases = ops.cases(op, SMALL)
    assert len({case.name for case in cases}) == len(cases)
    for case_ in cases:
        ours, *_ = case_.contenders.values()
        case_.check(ours)


def test_a_gpus_op_says_so():
    with pytest.raises(NotHereError, match="needs a GPU"):
        ops.cases("device_codec", SMALL)


def test_a_gpus_cases_are_made_without_one():
    cases = ops.cases("device_codec", Options(device="cuda")) + ops.cases("linear_grpo_loss", Options(device="cuda"))
    assert {"encode int4 nearest, float32", "frozen head"} < {case.name for case in cases}


def test_one_op_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert main(["aggregate", "--parameters", "256", "--rounds", "1", "--against", "eager", "--only", "none"]) == 0
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    contenders = ["fgrpo", "eager", "eager, one product"]
    assert [r["contender"] for r in content["results"]] == contenders
    assert [b["fullname"] for b in content["benchmarks"]] == [
        f"benchmarks/bench_aggregate.py::test_aggregate[none: {contender}]" for contender in contenders
    ]
    shown = capsys.readouterr().out
    assert f"written: {path}" in shown
    assert "none: eager" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["gram", "--threads", "0"], "--threads must be at least 1, got 0", id="no threads"),
        pytest.param(["gram", "--model", "gpt"], "invalid choice: 'gpt'", id="unknown model"),
        pytest.param(["gram", "--against", "trl,torch"], "unknown contender: torch", id="unknown contender"),
        pytest.param(["gramm"], "invalid choice: 'gramm'", id="unknown op"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_the_list_names_ops_contenders_and_models(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "quack", None)
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*ops.OPS, *MODELS, "liger", "half padding, a third degenerate"])
    assert whereabouts("quack") == "not installed: pip install quack-kernels"
    monkeypatch.setitem(sys.modules, "quack", ModuleType("quack"))  # as one that is half imported
    assert whereabouts("quack") == "not installed: pip install quack-kernels"
    assert whereabouts("eager") == "here"


def test_memory_where_the_system_cannot_say(monkeypatch):
    def no_glibc(name):
        raise OSError

    monkeypatch.setattr(memory.ctypes, "CDLL", no_glibc)
    assert memory.peak_bytes(lambda: 1 / 0, "cpu") is None


def test_an_op_for_a_gpu_is_left_out_of_a_run_on_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert main(["device_codec", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "device_codec on cpu: needs a GPU\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("load", "told"), [(0.4, False), (1.4, False), (1.6, True)])
def test_a_busy_machine_is_told(load, told):
    said = busy_with({"load": load, "cores": 2})
    assert (said is not None and said.startswith("load 1.6 on 2 cores")) == told


def test_ours_is_held_to_an_instruction_set_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    widest = _C.simd_levels()[-1]
    options = ["--parameters", "256", "--rounds", "1", "--against", "eager", "--only", "int8, block 64"]
    assert main(["aggregate", *options, "--simd", "baseline"]) == 0
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert content["header"]["device"].endswith(", ours held to baseline")
    assert content["settings"]["simd"] == "baseline"
    assert content["header"]["simd_levels"][-1] == widest, "what our C++ would have taken"
    assert not any("headline" in record for record in content["results"])
    assert _C.use_simd(widest) == widest, "what was in use before is again"


@pytest.mark.parametrize(
    ("faults", "seconds", "calls"),
    [
        pytest.param([9999, 0, 9999, 0, 0, 0], 60.0, 6, id="until there is none"),
        pytest.param([9999] * 20, 60.0, memory.MOST_CALLS, id="always new memory"),
        pytest.param([9999] * 20, 0.0, 1, id="long calls"),
    ],
)
def test_nothing_is_timed_while_it_takes_new_memory(faults, seconds, calls, monkeypatch):
    total, made = [0], []
    monkeypatch.setattr(memory, "_page_faults", lambda: total[0])

    def run():
        total[0] += faults[len(made)]
        made.append(1)

    memory.settle([run], seconds)
    assert len(made) == calls


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_result_that_is_allocated_lands_in_memory_in_use():
    code = (
        "import resource, torch\n"
        "from fgrpo_kernels.bench.memory import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.empty(2**24).fill_(1.0)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(*(faults() for _ in range(32)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, last = map(int, done.stdout.split())  # the heap takes up to eight calls or so to have its places, by chance
    assert last < 32, "64 MiB are 16,384 pages, or 32 large ones"
