"""A comparison as a file, for a spreadsheet, a program or a person."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fgrpo.errors import ConfigError, RunError
from fgrpo.show.charts import line_picture
from fgrpo.show.comparison import (
    Compared,
    client_numbers,
    comparison_tables,
    differences,
    evaluated_names,
    written,
)
from fgrpo.show.comparison_ends import endings, endings_table
from fgrpo.show.pages import write_page
from fgrpo.show.series import Series
from fgrpo.show.summary import RunSummary
from fgrpo.show.text import percent
from fgrpo.show.verdict import verdict


def check_output(path: Path) -> None:
    """Raise ConfigError unless the file's ending says what it shall be."""
    if path.suffix.lower() not in _WRITERS:
        raise ConfigError(f"--output {path}: expected a file that ends in .csv, .json or .html")


def write_comparison(path: Path, runs: Sequence[Compared]) -> None:
    """Write a comparison as what the file's ending says.

    CSV has a row for each run and client, with the values of all keys that differ; JSON the same numbers as objects,
    with verdicts; HTML the tables, verdicts and curves as a page.

    Raises:
        ConfigError: for any other ending.
        RunError: the file cannot be written.
    """
    check_output(path)
    try:
        _WRITERS[path.suffix.lower()](path, runs)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None


def _write_csv(path: Path, runs: Sequence[Compared]) -> None:
    differing = differences(runs)
    rows = [
        {
            "run": run.name,
            **{key: written(values[at]) for key, values in differing.items()},
            "client": client,
            **client_numbers(run.summary, client),
        }
        for at, run in enumerate(runs)
        for client in evaluated_names(run.summary)
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["run", "client"])
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, runs: Sequence[Compared]) -> None:
    described = {
        "differences": {
            key: {run.name: _plain(value) for run, value in zip(runs, values, strict=True)}
            for key, values in differences(runs).items()
        },
        "against_first": {
            ending.run: {
                "difference": ending.change and ending.change.difference,
                "interval": ending.interval,
                "outcome": ending.outcome,
            }
            for ending in endings(runs)
        },
        "runs": {
            run.name: {
                "rounds": len(run.summary.rounds),
                "uplink_bytes": sum(run.summary.uplink_bytes()),
                "seconds": sum(run.summary.round_seconds()),
                "verdict": [asdict(finding) for finding in verdict(run.summary)],
                "clients": {client: client_numbers(run.summary, client) for client in evaluated_names(run.summary)},
            }
            for run in runs
        },
    }
    path.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return a value of the configuration as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _write_html(path: Path, runs: Sequence[Compared]) -> None:
    series = Series(
        "Mean held-out accuracy by round", {run.name: _mean_accuracy(run.summary) for run in runs}, percent, shared=True
    )
    write_page(
        path,
        "comparison.html.jinja",
        title=f"FGRPO: {len(runs)} runs compared",
        tables=comparison_tables(runs),
        endings=endings_table(runs),
        pictures=[] if series.constant else [line_picture(series, list(series.values))],
        verdicts={run.name: verdict(run.summary) for run in runs},
    )


def _mean_accuracy(summary: RunSummary) -> dict[int, float]:
    rounds = sorted({n for measured in summary.evaluations.values() for n in measured})
    return {n: fmean(m[n].accuracy for m in summary.evaluations.values() if n in m) for n in rounds}


_WRITERS: dict[str, Callable[[Path, Sequence[Compared]], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".html": _write_html,
}
