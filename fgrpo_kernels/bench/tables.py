"""One op's results as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from fgrpo_kernels.bench.case import package_of
from fgrpo_kernels.bench.results import Record

SHORT_COMMIT = 9
# Of the command.
OPTIONS = ("device", "model", "dtype", "rows", "parameters", "threads", "simd", "only", "seconds", "rounds")


def duration(seconds: float) -> str:
    unit, factor = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{factor * seconds:.3g} {unit}"


def times(record: Record, mark: str = "") -> str:
    """How many times as long as ours, and the interval of it where one was taken."""
    found = f"{mark}{record['times_ours']:.2f}{mark}"
    if "times_ours_95" in record:
        found += " [{:.2f}, {:.2f}]".format(*record["times_ours_95"])
    return found


def where(content: Record) -> str:
    """The device, what else a number depends on, and how to repeat it."""
    head = content["header"]
    versions = ", ".join(f"{name} {head[name]}" for name in ("torch", "triton", "cuda") if head.get(name))
    commit = (head["commit"] or "unknown")[:SHORT_COMMIT] + (", with changes" if head.get("modified") else "")
    return (
        f"{head['device']}, {content['settings']['threads']} threads, load {head['load']:.1f} before; {versions}; "
        f"{head['date'][:10]}, commit {commit}.\n\n    {command(content)}"
    )


def command(content: Record) -> str:
    """What gives these results again."""
    settings = content["settings"]
    chosen = [f"--{name}={settings[name]}" for name in OPTIONS if settings.get(name) is not None]
    against = [f"--against={','.join(settings['against'])}"] if settings.get("against") else []
    return shlex.join(["python", "-m", "fgrpo_kernels.bench", content["op"], *chosen, *against])


def table(content: Record) -> str:
    """A row for each case: ours, and how many times as long every other contender takes."""
    lines = ["| case | ours | rate | of the limit | memory | others, times as long |", "|---|---:|---:|---:|---:|---|"]
    lines += [_row(name, records) for name, records in _by_case(content["results"])]
    return "\n".join(lines) + "\n"


def _by_case(records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    for name in dict.fromkeys(record["case"] for record in records):
        yield name, [record for record in records if record["case"] == name]


def _row(name: str, records: list[Record]) -> str:
    ours, *others = records
    if "not_measured" in ours:
        return f"| {name} | {ours['not_measured']} | | | | |"
    spread = (ours["high_s"] - ours["low_s"]) / ours["median_s"]
    rate = f"{ours['rate'] / 1e9:.3g}e9 {ours['unit']}/s" if "rate" in ours else ""
    share = f"{ours['fraction_of_limit']:.0%} of {ours['limit']}" if "fraction_of_limit" in ours else ""
    peak = f"{ours['peak_bytes'] / 2**20:,.0f} MiB" if ours.get("peak_bytes") is not None else ""
    beside = "; ".join(_beside(other, ours) for other in others)
    return f"| {name} | {duration(ours['median_s'])} ±{spread / 2:.0%} | {rate} | {share} | {peak} | {beside} |"


def _beside(other: Record, ours: Record) -> str:
    name = other["contender"]
    if "not_measured" in other:
        return f"{name}: {other['not_measured']}"
    more = []
    if other.get("peak_bytes") and (ours.get("peak_bytes") or 0) > 2**20:
        more.append(f"{other['peak_bytes'] / ours['peak_bytes']:.1f} of the memory")
    if "bytes" in other:
        more.append(f"{other['bytes'] / ours['bytes']:.2f} of the bytes")
    bold = "**" if package_of(name) != "fgrpo" else ""
    return f"{name} {times(other, bold)}" + (f" ({', '.join(more)})" if more else "")
