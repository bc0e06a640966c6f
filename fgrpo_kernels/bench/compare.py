"""Whether ours became faster or slower between two runs, or whether nobody can tell; and whether a published ratio to
another contender is found again.

Two things look like a change and are none: the scatter of a run's own rounds, and a machine that was faster or busier
the other time. The first is an interval about the ratio of the medians, from resampled rounds. For the second there are
the other contenders, whose code is not ours: by how much their times moved together is the machine's part, and by how
much they moved apart is what a change must exceed. A ratio to another contender needs no such correction, as both were
timed in turns, but where others share a machine it moves from minute to minute (docs/log.md).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fgrpo_kernels.bench import intervals
from fgrpo_kernels.bench.case import package_of
from fgrpo_kernels.bench.results import Record
from fgrpo_kernels.bench.tables import times

FLOOR = math.log(1.02)  # less than this is not a change, however sharp
KNOWN = math.log(1.25)  # who cannot exclude more than this knows nothing
AGAIN = math.log(1.2)  # a ratio that moves by less is the same; the scatter of times that too few others show
VERSIONS = ("device", "torch", "triton", "python")

Key = tuple[str, str, str, str]  # op, case, contender; shape, threads and instruction set
Found = tuple[Record, Record]  # a record, and the header of its file


class Verdict(NamedTuple):
    """Of one case: B's time over A's, and the interval that the rounds leave, without the machine's part."""

    op: str
    case: str
    seconds: tuple[float, float]
    ratio: float
    low: float
    high: float
    word: str  # "faster", "slower", "same" or "cannot tell"


def compare(a: Mapping[Path, Record], b: Mapping[Path, Record]) -> str:
    """A line for each of our cases that both have, and for each ratio to another contender.

    Raises:
        ValueError: if they have none in common.
    """
    all_before, all_after = _by_key(a), _by_key(b)
    shared = [key for key in all_before if key in all_after]
    if not shared:
        raise ValueError("the two have no case in common: the same op, case, shape and number of threads")
    lines = [*_differences([all_before[key][1] for key in shared], [all_after[key][1] for key in shared])]
    before, after = ({key: found[key][0] for key in shared} for found in (all_before, all_after))
    for op in dict.fromkeys(key[0] for key in shared):
        keys = [key for key in shared if key[0] == op]
        others = [key for key in keys if package_of(key[2]) != "fgrpo"]
        drift, scatter = machine(
            [before[key]["median_s"] for key in others], [after[key]["median_s"] for key in others]
        )
        beside = f"{len(others)} contenders of others" if others else "no other contender"
        lines.append(
            f"{op}: {beside}; the machine took {math.exp(drift):.2f} times as long, give or take "
            f"{math.expm1(scatter):.0%}"
        )
        for key in keys:
            if package_of(key[2]) == "fgrpo":
                lines.append(f"  {_line(judge(before[key], after[key], drift, scatter, key))}")
        lines += [f"  {_again(key, before[key], after[key])}" for key in others if _paired(before[key], after[key])]
    return "\n".join(lines)


def machine(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """From the seconds of code that did not change: log of what the machine did, and how far the rest lies apart."""
    moved = [math.log(b / a) for a, b in zip(before, after, strict=True)]
    if not moved:
        return 0.0, AGAIN
    drift = statistics.median(moved)
    apart = sorted(abs(x - drift) for x in moved)
    return drift, max(FLOOR, apart[math.ceil(0.8 * len(apart)) - 1] if len(apart) > 2 else AGAIN)


def judge(before: Record, after: Record, drift: float, scatter: float, key: Key) -> Verdict:
    low, high = (math.log(bound) - drift for bound in intervals.of_quotient(after["seconds"], before["seconds"]))
    ratio = math.log(after["median_s"] / before["median_s"]) - drift
    word = _word(low, high, scatter, KNOWN - scatter, ("faster", "same", "slower"))
    case = key[1] if key[2] == "fgrpo" else f"{key[1]}: {key[2]}"
    seconds = (before["median_s"], after["median_s"])
    return Verdict(key[0], case, seconds, math.exp(ratio), math.exp(low), math.exp(high), word)


def _word(low: float, high: float, change: float, known: float, words: tuple[str, str, str]) -> str:
    """What an interval of a logarithm says: that it is beyond a change, or within what counts as the same."""
    below, same, above = words
    if high < -change:
        return below
    if low > change:
        return above
    return same if -known <= low and high <= known else "cannot tell"


def _line(verdict: Verdict) -> str:
    a, b = (1e3 * seconds for seconds in verdict.seconds)
    return (
        f"{verdict.case:60s} {a:10.4g} -> {b:10.4g} ms   {verdict.ratio:.2f} of it "
        f"({verdict.low:.2f} to {verdict.high:.2f}): {verdict.word}"
    )


def _paired(*records: Record) -> bool:
    return all("pairs" in record for record in records)


def _again(key: Key, before: Record, after: Record) -> str:
    """A ratio to ours, as it was and as it is."""
    low, high = (math.log(bound) for bound in intervals.of_quotient(after["pairs"], before["pairs"]))
    word = _word(low, high, AGAIN, AGAIN, ("smaller", "found again", "larger"))
    name = f"{key[1]}: {key[2]}"
    return f"{name:60s} {times(before)} -> {times(after)} times as long as ours: {word}"


def _by_key(contents: Mapping[Path, Record]) -> dict[Key, Found]:
    """Timed records; of the same key the newest file's counts."""
    return {
        (content["op"], record["case"], record["contender"], _circumstances(content, record)): (
            record,
            content["header"],
        )
        for content in sorted(contents.values(), key=lambda content: str(content["header"]["date"]))
        for record in content["results"]
        if "op" in content and "seconds" in record
    }


def _circumstances(content: Record, record: Record) -> str:
    return f"{record['shape']}, {record['threads']}, {content['settings'].get('simd')}"


def _differences(a: Sequence[Record], b: Sequence[Record]) -> Iterator[str]:
    """What besides our code may have changed, by the files' headers."""
    for name in VERSIONS:
        before, after = (sorted({str(header.get(name)) for header in headers}) for headers in (a, b))
        if before != after:
            yield f"{name}: {', '.join(before)} -> {', '.join(after)}"
