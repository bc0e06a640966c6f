"""Cases as tests of pytest-benchmark, with contenders that are made up."""

import importlib
from types import SimpleNamespace

import contests
import pytest

from fgrpo_kernels.bench.case import Case, NotHereError

CONTENDERS = ("fgrpo", "eager", "liger", "quack")


class Benchmark:
    """In place of pytest-benchmark's fixture: runs its rounds."""

    def __init__(self):
        self.extra_info = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, run, setup, rounds, warmup_rounds):
        for _ in range(warmup_rounds + rounds):
            setup()
            run()
        self.stats.stats.data = rounds * [1e-3]


def raising(error):
    def make(data):
        raise error

    return make


@pytest.fixture
def cases(monkeypatch):
    """The cases of the op "made up", whose contenders add what they were called with to a list."""
    calls = []
    makers = (
        lambda data: lambda: calls.append("fgrpo"),
        lambda data: lambda: calls.append("eager"),
        raising(ModuleNotFoundError("no", name="liger_kernel")),
        raising(NotHereError("needs a GPU, Hopper or later")),
    )
    contenders = dict(zip(CONTENDERS, makers, strict=True))
    case = Case("forward", lambda: None, contenders, lambda make: None, {"rows": 2}, threads=1)
    contests.cases_of.cache_clear()
    monkeypatch.setattr(contests.ops, "cases", lambda op, options: [case])
    monkeypatch.setenv("ROUNDS", "3")
    yield calls
    contests.cases_of.cache_clear()


def test_ours_runs_before_each_of_anothers_rounds(cases):
    benchmark = Benchmark()
    contests.measure(benchmark, ("made up", "forward", "eager"))
    assert cases == ["fgrpo", "eager"] * 4
    assert benchmark.extra_info.keys() == {"rows", "times_ours"}


@pytest.mark.parametrize(
    ("contender", "reason"),
    [("liger", "not installed: pip install liger-kernel"), ("quack", "needs a GPU, Hopper or later")],
)
def test_who_cannot_run_here_is_skipped_with_the_reason(cases, contender, reason):
    with pytest.raises(pytest.skip.Exception, match=reason):
        contests.measure(Benchmark(), ("made up", "forward", contender))
    assert cases == []


@pytest.mark.parametrize("op", contests.ops.OPS)
def test_every_op_has_its_file(cases, op):
    test = vars(importlib.import_module(f"bench_{op}"))[f"test_{op}"]
    (mark,) = test.pytestmark
    assert [parameter.id for parameter in mark.args[1]] == [f"forward: {name}" for name in CONTENDERS]
    test(Benchmark(), (op, "forward", "eager"))
    assert cases == ["fgrpo", "eager"] * 4


def test_an_op_that_is_not_for_this_device_has_no_tests(cases, monkeypatch):
    def none_here(op, options):
        raise NotHereError("needs a GPU")

    monkeypatch.setattr(contests.ops, "cases", none_here)
    assert contests.contests("made up").args == ("contest", [])


def test_options_from_the_environment(monkeypatch):
    for name, value in {"ROUNDS": "7", "ROWS": "64", "MODEL": "smollm2", "DEVICE": "cuda"}.items():
        monkeypatch.setenv(name, value)
    chosen = contests.chosen()
    assert (chosen.rounds, chosen.rows, chosen.model, chosen.device) == (7, 64, "smollm2", "cuda")
