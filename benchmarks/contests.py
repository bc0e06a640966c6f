"""The cases of `fgrpo_kernels.bench` as tests of pytest-benchmark: one test a contender.

    PARAMETERS=4194304 THREADS=2 python -m pytest benchmarks/bench_gram.py --benchmark-json gram.json

ROUNDS, THREADS, ROWS, PARAMETERS, MODEL and DEVICE in the environment are its options. A contender that cannot run here
is skipped with the reason; one whose result is wrong fails and is not timed. Ours runs before each of another's rounds;
`times_ours` in the JSON file is the median of these pairs.
"""

from __future__ import annotations

import os
import statistics
import time
from functools import cache, lru_cache
from typing import Any

import pytest
import torch

from fgrpo_kernels.bench import ops
from fgrpo_kernels.bench.case import Case, NotHereError, Options, Run, package_of
from fgrpo_kernels.bench.packages import how_to_get
from fgrpo_kernels.bench.runner import prepare

NUMBERS = ("rounds", "threads", "rows", "parameters")
DEFAULT_ROUNDS = 5


def chosen() -> Options:
    numbers = {name: int(os.environ[name.upper()]) for name in NUMBERS if name.upper() in os.environ}
    texts = {name: os.environ[name.upper()] for name in ("model", "device") if name.upper() in os.environ}
    return Options(**numbers, **texts)


@cache
def cases_of(op: str) -> dict[str, Case]:
    try:
        return {case.name: case for case in ops.cases(op, chosen())}
    except NotHereError:
        return {}


def contests(op: str) -> pytest.MarkDecorator:
    """Parametrises a test by `contest`: the op, a case's name and a contender's."""
    found = [(op, case.name, name) for case in cases_of(op).values() for name in case.contenders]
    return pytest.mark.parametrize("contest", [pytest.param(c, id=f"{c[1]}: {c[2]}") for c in found])


def measure(benchmark: Any, contest: tuple[str, str, str]) -> None:
    op, name, contender = contest
    options, case = chosen(), cases_of(op)[name]
    torch.set_num_threads(case.threads or options.threads)
    try:
        run = prepare(case, contender, inputs(op, name))
    except ImportError as error:
        pytest.skip(how_to_get(package_of(contender), error.name or str(error)))
    except NotHereError as error:
        pytest.skip(str(error))
    our_name = next(iter(case.contenders))
    ours = run if contender == our_name else case.contenders[our_name](inputs(op, name))
    before: list[float] = []

    def time_ours() -> None:
        start = time.perf_counter()
        wait_for(ours, options)
        before.append(time.perf_counter() - start)

    rounds = options.rounds or DEFAULT_ROUNDS
    benchmark.pedantic(lambda: wait_for(run, options), setup=time_ours, rounds=rounds, warmup_rounds=1)
    pairs = zip(benchmark.stats.stats.data, before[-rounds:], strict=True)
    benchmark.extra_info |= {**case.shape, "times_ours": statistics.median(theirs / mine for theirs, mine in pairs)}


@lru_cache(maxsize=1)
def inputs(op: str, name: str) -> Any:
    return cases_of(op)[name].inputs()


def wait_for(run: Run, options: Options) -> None:
    run()
    if options.on_gpu:
        torch.get_device_module(options.device).synchronize()
