"""Numbers and names as people read them, the same in the terminal, the pictures and the report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fgrpo.config import EngineConfig

NAMED = 5  # clients that a sentence names


def printable(text: str, encoding: str = "utf-8") -> str:
    """Return text in which nothing can move the cursor or fail to be written: names and reasons come from outside."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


def counted(number: int, what: str) -> str:
    """Return `1 seed`, `2 seeds`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def points(before: float | None, after: float | None) -> str:
    """Return a change of accuracy in percentage points."""
    return "-" if before is None or after is None else f"{100 * (after - before):+.1f}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def seconds(value: float) -> str:
    """Return a time with three digits, in milliseconds below one second, in minutes from two minutes on."""
    if value >= 120:
        return f"{value / 60:.1f} min"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def duration(seconds: float) -> str:
    """Return how long something took or will take, roughly: in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def byte_size(count: float) -> str:
    """Return a number of bytes with three digits and a decimal prefix (1 kB is 1000 bytes)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def ratio(part: float, whole: float) -> str:
    """Return `1/7.5` for a part that fits 7.5 times; cut, not rounded, so that it never promises too much."""
    return f"1/{math.floor(10 * whole / part) / 10:.1f}" if part else "-"


def named(names: Iterable[str]) -> str:
    """Return the first of some names as a sentence lists them, and how many more there are."""
    names = list(names)
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def engine(config: EngineConfig) -> str:
    """Return where clients live; both numbers of the configuration are decided."""
    threads = f"{config.threads} thread" + ("" if config.threads == 1 else "s")
    if config.stacked:
        return f"this process, clients stacked, {threads}"
    if not config.workers:
        return f"this process, {threads}"
    return f"{config.workers} worker" + ("" if config.workers == 1 else "s") + f" x {threads}"
