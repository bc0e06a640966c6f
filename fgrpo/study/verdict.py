"""What a study decides, in sentences with their evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fgrpo.show.tables import TextTable
from fgrpo.show.text import counted, percent
from fgrpo.study.comparison import Against, Row
from fgrpo.study.spec import Study


def verdict_table(study: Study, rows: Sequence[Row]) -> TextTable:
    """Return the sentences, scenario by scenario; of a single one without its name."""
    found = [
        (scenario.name, sentence)
        for scenario in study.scenarios
        for sentence in sentences(study, [row for row in rows if row.scenario == scenario.name])
    ]
    single = len(study.scenarios) == 1
    return TextTable(
        "Verdict",
        ("",) if single else ("scenario", ""),
        tuple(line[1:] if single else line for line in found),
        numbers_from=2,
        note="in brackets: 95% interval by t over paired seeds; not decided: it holds 0",
    )


def sentences(study: Study, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what the rows of one scenario decide: whether anybody learned, and each arm against the reference."""
    if rows and not any(row.learned for row in rows):
        best = max(rows, key=lambda row: row.final)
        ends = f"accuracy {percent(best.before)} before training, {percent(best.final)} at the end at best ({best.arm})"
        yield f"nobody learned: {ends}, within chance"
    for row in rows:
        if row.arm == study.reference:
            if len(rows) == 1:
                gained = f"accuracy {percent(row.before)} before training, {percent(row.final)} at the end"
                yield f"{row.arm}: {gained} over {counted(row.seeds, 'seed')}; there is nothing to compare it with"
        elif row.against is None:
            yield f"{row.arm}: no seed of {study.reference} is finished yet to compare it with"
        else:
            yield f"{row.arm} against {study.reference}: {_decision(row.against)}"


def _decision(against: Against) -> str:
    value, interval = 100 * against.final.value, against.final.t
    if interval is None:
        return f"{value:+.1f} points with {counted(against.seeds, 'seed')}: not decided, which takes two seeds at least"
    low, high = 100 * interval.low, 100 * interval.high
    if low == high == 0:
        outcome = "no difference with any seed"
    elif interval.excludes(0):
        outcome = "higher" if value > 0 else "lower"
    else:
        outcome = "not decided"
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}] over {against.seeds} seeds: {outcome}"
