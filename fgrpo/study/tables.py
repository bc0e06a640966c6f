"""A study's tables: as text for the page and the terminal, as Markdown, and as CSV with every digit."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo.show.tables import TextTable
from fgrpo.show.text import percent, printable
from fgrpo.study.comparison import Row, Runs
from fgrpo.study.intervals import Estimate, Interval
from fgrpo.study.measures import Curve
from fgrpo.study.plan import Cell, Pair
from fgrpo.study.spec import Study, Tune
from fgrpo.study.tuning import Choice, Find

_NOT_BRIEF = (
    *("seeds", "worst client", "restless", "rounds to 90%", "to reference", "worst differs"),
    *("completions", "fewer completions", "of centralised"),
)


def overview_table(study: Study, rows: Sequence[Row]) -> TextTable:
    """Return the differences to the reference arm, arms down and scenarios across."""
    by_place = {(row.arm, row.scenario): row for row in rows}
    cells = []
    for arm in study.arms:
        line = [arm.name]
        for scenario in study.scenarios:
            row = by_place.get((arm.name, scenario.name))
            if row is None:
                line.append("-")
            elif arm.name == study.reference or row.against is None:
                line.append(percent(row.final))
            else:
                line.append(_points(row.against.final.value) + _mark(row.against.final.t, 0))
        cells.append(tuple(line))
    return TextTable(
        f"Final accuracy against {study.reference}",
        (study.arm_word, *(s.name if study.sweep_of is None else "final" for s in study.scenarios)),
        tuple(cells),
        note=f"{study.reference}: accuracy; others: points of difference; * the 95% interval (t, over paired seeds) "
        "leaves out 0",
    )


def scenario_table(study: Study, scenario: str, rows: Sequence[Row], brief: bool = False) -> TextTable:
    """Return what every arm came to in a scenario; `brief` fits a terminal of 80 columns."""
    cells, warnings, unused = [], [], []
    rows = [row for row in rows if row.scenario == scenario]
    for row in rows:
        value = (row.choice.text or "-") + ("!" if row.choice.at_edge else "")
        if own := study.arm(row.arm).tune:
            value = f"{own} {value}"
        if row.choice.at_edge:
            warnings.append(row.arm)
        if row.quarantined:
            unused.append(f"{row.arm} {row.quarantined:.3g}")
        cells.append((row.arm, value, *_measured(row), *_compared(row)))
    columns = (
        *(study.arm_word, study.tune.key if study.tune else "tuned", "seeds", "accuracy", "worst client", "restless"),
        *("rounds to 90%", "to reference", "difference", "worst differs", "fewer rounds"),
        *("completions", "fewer completions", "of centralised"),
    )
    notes = []
    if warnings:
        notes.append(f"! the best value lies at the grid's edge, so a better one may lie beyond: {', '.join(warnings)}")
    if unused:
        notes.append(f"replies that were not used, a run: {', '.join(unused)}")
    left_out = {*(_NOT_BRIEF if brief else []), *_without_content(rows), *([] if study.tune else ["tuned"])}
    keep = [at for at, column in enumerate(columns) if column not in left_out]
    return TextTable(
        scenario if study.sweep_of is None else "What each configuration came to",
        tuple(columns[at] for at in keep),
        tuple(tuple(line[at] for at in keep) for line in cells),
        note="; ".join(notes),
    )


def _without_content(rows: Sequence[Row]) -> list[str]:
    """Return the columns that would tell nothing: without a centralised baseline, or where all arms sampled as many."""
    central = any(row.of_centralised is not None for row in rows)
    varied = len({row.completions for row in rows} - {None}) > 1
    return [*([] if central else ["of centralised"]), *([] if varied else ["completions", "fewer completions"])]


_LEGEND = {
    "accuracy": "mean over clients and the last {last} evaluations, ± standard deviation over seeds",
    "worst client": "the lowest client's",
    "restless": "standard deviation over the last evaluations of a run, in points",
    "rounds to 90%": "median, of the best federated arm's accuracy",
    "to reference": "median rounds to {reference}'s accuracy with the same seed",
    "difference": "points against {reference}, mean over paired seeds, with its 95% interval by t",
    "worst differs": "the same of the worst clients",
    "fewer rounds": "how many times fewer rounds the mean curve takes to {reference}'s final accuracy (0: never; "
    "empty: {reference} is as high from the start), with its 95% interval by the bootstrap over seeds (none of "
    "fewer than three)",
    "completions": "that the clients of a run sampled, on average (-: not counted)",
    "fewer completions": "the same as fewer rounds, in sampled completions",
    "of centralised": "final accuracy as a share of the centralised baseline's",
}


def how_to_read(study: Study, columns: Sequence[str]) -> str:
    """Return what the columns of scenarios' tables mean."""
    legend = "; ".join(f"{column}: {_LEGEND[column]}" for column in dict.fromkeys(columns) if column in _LEGEND)
    return legend.format(last=study.last, reference=study.reference)


def _measured(row: Row) -> tuple[str, ...]:
    return (
        str(row.seeds),
        _spread(row.final, row.final_sd),
        _spread(row.worst, row.worst_sd),
        f"{100 * row.deviation:.1f}",
        rounds_text(row.rounds_to_90),
        rounds_text(row.rounds_to_reference),
    )


def _compared(row: Row) -> tuple[str, ...]:
    completions, central = "-" if row.completions is None else f"{row.completions:,.0f}", percent(row.of_centralised)
    if row.against is None:
        return ("", "", "", completions, "", central)
    return (
        _with_interval(row.against.final, row.against.final.t, _points),
        _with_interval(row.against.worst, row.against.worst.t, _points),
        _times(row.against.speed_up),
        completions,
        _times(row.against.sample_efficiency),
        central,
    )


def _times(ratio: Estimate | None) -> str:
    return "" if ratio is None else _with_interval(ratio, ratio.bootstrap, lambda x: f"{x:.2f}")


def tuning_tables(study: Study, all_runs: Sequence[Runs]) -> list[TextTable]:
    """Return, for each tuned key, the accuracy at its values, by which they were chosen."""
    if study.tune is None:
        return []
    by_key: dict[str, list[tuple[Pair, Choice]]] = {}
    for run in all_runs:
        if run.pair.tuning_seeds and run.choice is not None:
            by_key.setdefault(study.tune.key_of(run.pair.arm), []).append((run.pair, run.choice))
    return [_tuning_table(study, study.tune, key, tuned) for key, tuned in by_key.items()]


def _tuning_table(study: Study, tune: Tune, key: str, tuned: Sequence[tuple[Pair, Choice]]) -> TextTable:
    finals = any(tune.finalists_of(pair.arm) > 1 for pair, _ in tuned)
    values = list(dict.fromkeys(value for pair, _ in tuned for value in pair.configs))
    values = sorted(values) if all(isinstance(value, int | float) for value in values) else values
    rows: list[tuple[str, ...]] = []
    for pair, choice in tuned:
        head, chosen = (pair.scenario.name, pair.arm.name), choice.text + (" ! edge" if choice.at_edge else "")
        on_tuning_seeds = _shares(choice.on_tuning_seeds, values)
        if finals:
            rows.append((*head, "tuning", *on_tuning_seeds, ""))
            rows.append((*head, "reported", *_shares(choice.on_reported_seeds, values), chosen))
        else:
            rows.append((*head, *on_tuning_seeds, chosen))
    return TextTable(
        f"Tuning of {key}: accuracy on the tuning seeds" + (", and of the finalists on those reported" * finals),
        ("scenario", study.arm_word, *(["seeds"] if finals else []), *map(str, values), "chosen"),
        tuple(rows),
        numbers_from=2 + finals,
        note="- failed, not played, or not in the arm's grid; ! the best value lies at the grid's edge"
        + "; chosen: for each reported seed the finalist that is best on the others (in brackets: for how many)"
        * finals,
    )


def _shares(accuracy: Mapping[object, float | None], values: Sequence[object]) -> list[str]:
    return ["-" if (share := accuracy.get(value)) is None else percent(share) for value in values]


def failure_table(failures: Mapping[Cell, str]) -> TextTable:
    """Return what failed, and why."""
    rows = tuple((cell.name, reason) for cell, reason in failures.items())
    return TextTable("Cells that failed", ("cell", "reason"), rows, numbers_from=2)


def markdown(table: TextTable) -> str:
    """Return a table as Markdown; names in it are text, whatever they hold."""
    lines = [table.columns, tuple("---:" if at >= table.numbers_from else "---" for at in range(len(table.columns)))]
    body = "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in [*lines, *table.rows])
    return f"## {_plain(table.title)}\n\n{body}\n" + (f"\n{_plain(table.note)}\n" if table.note else "")


def _plain(text: str) -> str:
    return re.sub(r"[\\|`<]", r"\\\g<0>", printable(text))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write every number of every row."""
    _write_csv(path, (_row_numbers(row) for row in rows))


def _row_numbers(row: Row) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "scenario": row.scenario,
        "arm": row.arm,
        "seeds": row.seeds,
        "tuned_value": row.choice.text or None,
        "at_edge": row.choice.at_edge,
    }
    for name in (
        *("before", "learned"),
        *("final", "final_sd", "worst", "worst_sd", "deviation"),
        *("rounds_to_90", "rounds_to_reference", "of_centralised", "completions"),
    ):
        numbers[name] = getattr(row, name)
    for name in ("final", "worst", "speed_up", "speed_up_by_seed", "sample_efficiency"):
        estimate: Estimate | None = getattr(row.against, name, None)
        key = f"{name}_difference" if name in ("final", "worst") else name
        numbers[key] = estimate and estimate.value
        for kind in ("t", "bootstrap"):
            interval: Interval | None = getattr(estimate, kind, None)
            numbers[f"{key}_{kind}_low"] = interval and interval.low
            numbers[f"{key}_{kind}_high"] = interval and interval.high
    return numbers


def write_cells(path: Path, study: Study, pairs: Sequence[Pair], find: Find) -> None:
    """Write a line for each finished cell, those of tuning too, with its curve."""
    lines = []
    for pair in pairs:
        cells = [*pair.tuning(), *(cell for value in pair.configs for cell in pair.reported(value, study.seeds))]
        for cell in cells:
            result = find(cell)
            if result is None:
                continue
            curve = Curve.of(result.accuracy, pair.scenario.measure, result.completions)
            lines.append(
                {
                    "scenario": cell.scenario,
                    "arm": cell.arm,
                    "tuned_value": cell.value,
                    "seed": cell.seed,
                    "tuning": cell.tuning,
                    "final": curve.final(study.last),
                    "worst": curve.worst(study.last),
                    "deviation": curve.deviation(study.last),
                    "seconds": round(result.seconds, 2),
                    "quarantined": result.quarantined,
                    "completions": sum(result.completions.values()) or None,
                    "folder": str(cell.folder),
                    "rounds": " ".join(map(str, curve.rounds)),
                    "accuracy": " ".join(f"{accuracy:.5g}" for accuracy in curve.mean),
                }
            )
    _write_csv(path, lines)


def _write_csv(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    lines = list(lines)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)


def rounds_text(rounds: float | None) -> str:
    if rounds is None:
        return "-"
    return "never" if math.isinf(rounds) else f"{rounds:.1f}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _spread(value: float, deviation: float | None) -> str:
    return percent(value) + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _with_interval(estimate: Estimate, interval: Interval | None, text: Any) -> str:
    if interval is None:
        return f"{text(estimate.value)} (no interval)"
    return f"{text(estimate.value)} [{text(interval.low)}, {text(interval.high)}]"


def _mark(interval: Interval | None, value: float) -> str:
    return " *" if interval is not None and interval.excludes(value) else ""
