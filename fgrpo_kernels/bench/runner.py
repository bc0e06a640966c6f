"""From cases to records: each contender is checked, then timed in turns with ours; one that fails stops no other."""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fgrpo_kernels.bench import intervals
from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, WrongResultError, package_of
from fgrpo_kernels.bench.clock import Clock, Turn, clock_of
from fgrpo_kernels.bench.limits import copy_bandwidth, matrix_rate
from fgrpo_kernels.bench.memory import keep_freed_memory, peak_bytes, settle
from fgrpo_kernels.bench.packages import how_to_get
from fgrpo_kernels.bench.results import Record, failed
from fgrpo_kernels.bench.shapes import dtype_of, name_of
from fgrpo_kernels.bench.tables import duration, times

FEWEST_ROUNDS, MOST_ROUNDS = 3, 15
SHORTEST_TURN = 5e-3  # seconds: of what takes microseconds, rounds would else be over within a moment
LONG_CALL = 0.25  # seconds: what such a call finds does not matter
GPU_WARM_UP = 3  # calls before anything is measured


def measure(cases: Iterable[Case], options: Options) -> Iterator[Record]:
    """A record for each contender of each case, as soon as it is there."""
    clock = clock_of(options.device)
    for case in cases:
        if options.only is None or options.only in case.name:
            here = dataclasses.replace(options, threads=case.threads or options.threads)
            torch.set_num_threads(here.threads)
            yield from _measure_case(case, here, clock)
            _forget(options)
    torch.set_num_threads(options.threads)


def chosen(case: Case, options: Options) -> dict[str, Maker]:
    """Ours, and those of the packages that the options name."""
    ours, *_ = case.contenders
    return {
        name: make
        for name, make in case.contenders.items()
        if name == ours or options.against is None or package_of(name) in options.against
    }


def prepare(case: Case, name: str, data: Any) -> Run:
    """A contender, checked and ready to be timed.

    Raises:
        WrongResultError: if what it computes is wrong.
        ImportError, NotHereError: if it cannot run on this machine.
    """
    keep_freed_memory()
    make = case.contenders[name]
    case.check(make)
    return make(data)


def _measure_case(case: Case, options: Options, clock: Clock) -> Iterator[Record]:
    context = {"case": case.name, "shape": dict(case.shape), "threads": options.threads}
    try:
        data = case.inputs()
        limits = _limits(case, options)
    except Exception as error:  # a case's own fault must not lose the others' figures
        yield failed(case.name, _reason("", error), **context)
        return
    our_run: Run | None = None
    our_record: Record | None = None
    records = []
    for name in chosen(case, options):
        record: Record = {"name": f"{case.name}: {name}", "contender": name, **context}
        try:
            run = prepare(case, name, data)
            if options.on_gpu:  # what compiling takes is not the call's
                clock.turns([Turn(run)], GPU_WARM_UP)
            peak = peak_bytes(run, options.device)  # on a CPU this is what warms up
            beside = [run] if our_run is None else [our_run, run]
            if not options.on_gpu:
                settle(beside, options.seconds)
            seconds = _seconds(beside, options, clock)
            record |= _figures(case, seconds[-1], limits) | {"peak_bytes": peak}
            if case.describe is not None:
                record |= case.describe(run())
            if our_run is None:
                our_run, our_record = run, record
            else:
                record |= _beside(seconds[1], seconds[0])
        except Exception as error:
            record |= {"not_measured": _reason(name, error)}
            if our_run is None:
                yield record
                return  # without ours there is nothing to compare with
        records.append(record)
        if our_record is not None and case.in_readme is not None and options.simd is None:
            _give_headline(case, our_record, records)
        yield record
        run = None  # type: ignore[assignment]
        _forget(options)


def _limits(case: Case, options: Options) -> Record:
    """The rates that bound this case, as they are now."""
    limits: Record = {}
    if case.moved is not None:
        limits["copy_bytes_per_second"] = copy_bandwidth(options.device)
    if case.operations is not None:
        limits["operations_per_second"] = matrix_rate(options.device, dtype_of(options))
    return limits


def _seconds(runs: list[Run], options: Options, clock: Clock) -> list[list[float]]:
    """Seconds a call, a list for each of `runs`, each of which has been called before."""
    gc.collect()
    first = clock.turns([Turn(run) for run in runs], 1)
    turns = _turns(runs, first)
    if short := any(turn.warm for turn in turns):  # its first call says little
        first = clock.turns(turns, 1)
        turns = _turns(runs, first)
    round_s = sum((turn.calls + turn.warm) * seconds for turn, (seconds,) in zip(turns, first, strict=True))
    rounds = options.rounds or min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(options.seconds / round_s)))
    if short:
        return clock.turns(turns, rounds)
    return [[*one, *more] for one, more in zip(first, clock.turns(turns, rounds - 1), strict=True)]


def _turns(runs: list[Run], once: list[list[float]]) -> list[Turn]:
    """Turns that are long enough, by the seconds of one call of each."""
    return [
        Turn(run, calls=max(1, math.ceil(SHORTEST_TURN / seconds)), warm=seconds < LONG_CALL)
        for run, (seconds,) in zip(runs, once, strict=True)
    ]


def _figures(case: Case, seconds: list[float], limits: Record) -> Record:
    median = statistics.median(seconds)
    figures: Record = {
        "median_s": median,
        "low_s": min(seconds),
        "high_s": max(seconds),
        "seconds": seconds,
        **limits,
    }
    least = []
    if case.moved is not None:
        figures["moved_bytes"] = case.moved
        least.append((case.moved / limits["copy_bytes_per_second"], "copy"))
    if case.operations is not None:
        figures["operations"] = case.operations
        least.append((case.operations / limits["operations_per_second"], "products"))
    if least:
        bound, limit = max(least)
        figures |= {"fraction_of_limit": bound / median, "limit": limit}
    if case.work is not None:
        amount, unit = case.work
        figures |= {"work": amount, "unit": unit, "rate": amount / median}
    return figures


def _beside(theirs: list[float], ours: list[float]) -> Record:
    """How many times as long they take, round by round: the median, and where it lies."""
    pairs = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"times_ours": statistics.median(pairs), "times_ours_95": intervals.of_median(pairs), "pairs": pairs}


def _give_headline(case: Case, ours: Record, records: list[Record]) -> None:
    """README's line: ours beside the fastest of its rivals."""
    rivals = [r for r in records if "times_ours" in r and package_of(r["contender"]) != "fgrpo"]
    if not rivals:
        return
    fastest = min(rivals, key=lambda rival: rival["times_ours"])
    ours["headline"] = {
        "what": case.in_readme,
        "figure": _figure(ours),
        "against": f"{fastest['contender']} {_figure(fastest)}, {times(fastest)} times as long",
    }


def _figure(record: Record) -> str:
    if "rate" in record:
        return f"{record['rate'] / 1e9:.3g}e9 {record['unit']}/s"
    return duration(record["median_s"])


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return how_to_get(package_of(name), getattr(error, "name", None) or str(error))
    if isinstance(error, NotHereError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if isinstance(error, WrongResultError | AssertionError):
        return f"wrong result: {_first_line(error)}"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _forget(options: Options) -> None:
    gc.collect()
    if options.on_gpu:
        torch.get_device_module(options.device).empty_cache()


def settings(options: Options) -> Record:
    """The options as they are written down."""
    return dataclasses.asdict(options) | {"dtype": name_of(dtype_of(options))}
