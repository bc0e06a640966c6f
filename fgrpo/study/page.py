"""What a study leaves to be read: one page that needs nothing, and the same tables as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fgrpo.errors import RunError
from fgrpo.show.pages import write_page
from fgrpo.show.tables import TextTable
from fgrpo.show.text import duration
from fgrpo.study import tables
from fgrpo.study.comparison import Runs, rows, runs
from fgrpo.study.plan import Cell, Pair
from fgrpo.study.plots import write_plots
from fgrpo.study.spec import Study
from fgrpo.study.tuning import Find
from fgrpo.study.verdict import verdict_table


class Report(NamedTuple):
    """Where the page is, and the tables for a terminal."""

    page: Path
    tables: list[TextTable]


def write_report(study: Study, pairs: Sequence[Pair], find: Find, failures: Mapping[Cell, str]) -> Report:
    """Write `report/index.html`, `table.md`, `table.csv`, `cells.csv` and the pictures.

    Raises:
        RunError: nothing to be reported is finished yet, or the report cannot be written.
    """
    all_runs = runs(study, pairs, find)
    all_rows = rows(study, all_runs)
    if not all_rows:
        why = f"; the first failure: {next(iter(failures.values()))}" if failures else ""
        raise RunError(f"{study.title}: no cell is finished yet in {study.output_dir}{why}")
    report = study.output_dir / "report"
    page = report / "index.html"
    scenario_tables = {s.name: tables.scenario_table(study, s.name, all_rows) for s in study.scenarios}
    tuning = tables.tuning_tables(study, all_runs)
    failed = [tables.failure_table(failures)] if failures else []
    overview, verdict = tables.overview_table(study, all_rows), verdict_table(study, all_rows)
    legend = tables.how_to_read(study, _columns(scenario_tables.values()))
    try:
        report.mkdir(parents=True, exist_ok=True)
        pictures = write_plots(study, all_runs, all_rows, report)
        tables.write_rows(report / "table.csv", all_rows)
        tables.write_cells(report / "cells.csv", study, pairs, find)
        text = [tables.markdown(table) for table in (verdict, overview, *scenario_tables.values(), *tuning, *failed)]
        heading = f"# {study.title[0].upper()}{study.title[1:]}\n\n{legend}.\n"
        (report / "table.md").write_text("\n".join([heading, *text]), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{report}: the report cannot be written: {error.strerror}") from None
    write_page(
        page,
        "study.html.jinja",
        folder=Path(__file__).parent,
        title=f"FGRPO {study.title}",
        headline=_headline(study, all_runs, find, len(failures)),
        verdict=verdict,
        overview=overview,
        sections=[(table, pictures[name]) for name, table in scenario_tables.items()],
        how_to_read=legend,
        rest=[*tuning, *failed],
        file="The study's file" if study.sweep_of is None else "The sweep as a study's file",
        text=study.text,
    )
    brief = [tables.scenario_table(study, scenario.name, all_rows, brief=True) for scenario in study.scenarios]
    brief[-1] = replace(
        brief[-1], note="; ".join(filter(None, [brief[-1].note, tables.how_to_read(study, _columns(brief))]))
    )
    return Report(page, [overview, *brief, *failed, verdict])


def _columns(shown: Iterable[TextTable]) -> list[str]:
    return [column for table in shown for column in table.columns]


def _headline(study: Study, all_runs: Sequence[Runs], find: Find, failed: int) -> list[tuple[str, str, str]]:
    """Return what the study consists of, as (what, value, detail)."""
    planned = [cell for run in all_runs for cell in run.pair.tuning()]
    for run in all_runs:
        for value in run.choice.finalists if run.choice else ():
            planned += run.pair.reported(value, study.seeds)
    finished = [result for cell in planned if (result := find(cell)) is not None]
    details = [f"{duration(sum(result.seconds for result in finished))} of rounds"]
    details += [f"{len(planned) - len(finished)} missing"] if len(planned) > len(finished) else []
    details += [f"{failed} failed"] if failed else []
    scenarios = ("scenarios", str(len(study.scenarios)), f"{study.tune.key} tuned in each" if study.tune else "")
    return [
        (f"{study.arm_word}s", str(len(study.arms)), f"reference: {study.reference}"),
        *([scenarios] if study.sweep_of is None else []),
        ("seeds", str(len(study.seeds)), f"the same for every {study.arm_word}"),
        ("runs", str(len(finished)), ", ".join(details)),
    ]
