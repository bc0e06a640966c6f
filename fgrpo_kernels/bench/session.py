"""One run of one or several ops: what is printed, and what is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fgrpo_kernels import _C
from fgrpo_kernels.bench import ops, pytest_benchmark
from fgrpo_kernels.bench.case import NotHereError, Options, package_of
from fgrpo_kernels.bench.machine import header
from fgrpo_kernels.bench.packages import DISTRIBUTIONS, PACKAGES, whereabouts
from fgrpo_kernels.bench.results import Record, ResultFile
from fgrpo_kernels.bench.runner import measure, settings
from fgrpo_kernels.bench.shapes import MODELS
from fgrpo_kernels.bench.tables import times

BUSY = 0.75  # processes that wait to run, a core


def bench(names: Sequence[str], options: Options, device: str | None) -> int:
    """Measure the ops, each on `device`, or on every kind of device that the machine has where None; return 1 if a
    contender gave a wrong result, else 0."""
    torch.set_num_threads(options.threads)
    with held_to(options.simd):
        return _bench(names, options, device)


def _bench(names: Sequence[str], options: Options, device: str | None) -> int:
    written: list[Path] = []
    wrong = 0
    for chosen in [device] if device else devices():
        options = dataclasses.replace(options, device=chosen)
        for name in names:
            try:
                cases = ops.cases(name, options)
            except NotHereError as error:
                print(f"{name} on {chosen}: {error}")
                continue
            head = header(chosen, DISTRIBUTIONS)
            if options.simd:
                head["device"] += f", ours held to {options.simd}"
            file = ResultFile(name, head, op=name, settings=settings(options))
            print(f"\n{name} on {head['device']}, {options.threads} threads")
            if not written and (busy := busy_with(head)):
                print(busy)
            for record in measure(cases, options):
                file.add(record)
                print(f"  {line(record)}", flush=True)
                wrong += str(record.get("not_measured", "")).startswith("wrong result")
            file.content |= pytest_benchmark.content(name, head, file.results)
            file.write()
            written.append(file.path)
    for path in written:
        print(f"written: {path}")
    return 1 if wrong else 0


@contextmanager
def held_to(simd: str | None) -> Iterator[None]:
    """Within, our C++ keeps to an instruction set; None leaves it as it is."""
    before = None if simd is None else _C.use_simd(simd)
    try:
        yield
    finally:
        if before is not None:
            _C.use_simd(before)


def busy_with(head: Record) -> str | None:
    """What to know of a machine that was busy before anything was measured; None for a quiet one."""
    if head["load"] <= BUSY * head["cores"]:
        return None
    return (
        f"load {head['load']:.1f} on {head['cores']} cores: something else runs here; on a quiet machine times are "
        "shorter and ratios narrower"
    )


def devices() -> list[str]:
    return ["cpu", *(name for name in ("cuda", "xpu") if torch.get_device_module(name).is_available())]


def line(record: Record) -> str:
    """One contender's figures, or why there are none."""
    if "not_measured" in record:
        return f"{record['name']:68s} {record['not_measured']}"
    parts = [f"{record['name']:68s} {duration(record['median_s'])}"]
    spread = (record["high_s"] - record["low_s"]) / record["median_s"]
    parts.append(f"±{spread / 2:4.0%}")
    parts.append(f"{times(record) + ' of ours' if 'times_ours' in record else 'ours':>28s}")
    if "fraction_of_limit" in record:
        parts.append(f"{record['fraction_of_limit']:4.0%} of {record['limit']}")
    if "rate" in record:
        parts.append(f"{record['rate'] / 1e9:.3g}e9 {record['unit']}/s")
    if record.get("peak_bytes") is not None:
        parts.append(f"{record['peak_bytes'] / 2**20:.0f} MiB")
    return "   ".join(parts)


def duration(seconds: float) -> str:
    unit, factor = ("s ", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{factor * seconds:8.2f} {unit}"


def listing() -> str:
    """Ops, cases and contenders, and which packages and models there are."""
    lines = []
    for device in devices():
        for name in ops.OPS:
            try:
                cases = ops.cases(name, Options(device=device))
            except NotHereError as error:
                lines.append(f"{name} on {device}: {error}")
                continue
            lines.append(f"{name} on {device}")
            lines += [f"    {case.name}: {'; '.join(case.contenders)}" for case in cases]
    lines += ["", "packages", *(f"    {name:14s} {whereabouts(package_of(name))}" for name in PACKAGES)]
    lines += ["", "models (hidden size, vocabulary)"]
    lines += [f"    {name:18s} {head.hidden:5d} {head.vocabulary:8d}" for name, head in MODELS.items()]
    return "\n".join(lines)
