"""A run's report: one page for people, and its pictures as files for slides and papers."""

from __future__ import annotations

from pathlib import Path

from fgrpo.changes import in_words
from fgrpo.config import Config
from fgrpo.errors import RunError
from fgrpo.run_folder import RunFolder
from fgrpo.settings import read_config
from fgrpo.show.pages import write_page
from fgrpo.show.pictures import pictures
from fgrpo.show.plots import write_plots
from fgrpo.show.remote import remote_tables
from fgrpo.show.samples import compared_samples
from fgrpo.show.summary import RunSummary
from fgrpo.show.tables import quarantine_table, tables
from fgrpo.show.text import byte_size, percent, points, ratio, seconds
from fgrpo.show.verdict import verdict


def write_report(folder: RunFolder) -> Path:
    """Write `RUN/report/index.html` and `RUN/report/*.png`; return the page's path.

    Raises:
        RunError: no round is complete yet, or the report cannot be written.
    """
    summary = RunSummary.of(folder.records())
    if not summary.rounds:
        raise RunError(f"{folder.path}: no round is complete yet, so there is nothing to report")
    report, name = folder.path / "report", folder.path.resolve().name
    about = about_run(read_config(folder.config_file), summary)
    drawn, constants = pictures(summary)
    quarantines = quarantine_table(summary)
    write_page(
        report / "index.html",
        "report.html.jinja",
        title=f"FGRPO run {name}: {', '.join(f'{what} {value}' for what, value in about)}",
        run=name,
        about=about,
        changes=[f"from round {number} on: {in_words(changes)}" for number, changes in folder.changes()],
        findings=verdict(summary),
        headline=_headline(summary),
        pictures=drawn,
        constants=constants,
        tables=[*tables(summary), *remote_tables(summary), *([quarantines] if quarantines.rows else [])],
        samples=compared_samples(summary),
        config=folder.config_file.read_text(encoding="utf-8"),
    )
    try:
        write_plots(summary, report)
    except OSError as error:
        raise RunError(f"{report}: the report cannot be written: {error.strerror}") from None
    return report / "index.html"


def about_run(config: Config, summary: RunSummary) -> list[tuple[str, str]]:
    """Return what one must know of a run to tell it from another, as (what, value)."""
    codec, robust = config.codec, config.aggregation.robust
    ended = [round_.ended[:16].replace("T", " ") for round_ in summary.rounds if round_.ended]
    days = sorted({time[:10] for time in ended})
    date = f"{ended[0]} UTC" if len(days) == 1 else " to ".join(days[:: len(days) - 1]) if days else ""
    return [
        ("model", Path(config.model).name if "/" in config.model else config.model),
        ("rule", config.aggregation.rule if robust == "none" else f"{config.aggregation.rule}, {robust}"),
        ("codec", codec.codec if codec.codec in ("bf16", "none") else f"{codec.codec}, block {codec.block}"),
        ("seed", str(config.seed)),
        *([("date", date)] if date else []),  # runs of earlier releases have none
    ]


def _headline(summary: RunSummary) -> list[tuple[str, str, str]]:
    """Return what the run comes to, as (what, value, detail)."""
    uplink, wall = summary.uplink_bytes(), sum(summary.round_seconds())
    mean = summary.mean_accuracy()
    accuracy = f"{percent(mean[0])} → {percent(mean[1])}" if mean else "-"
    sent = ratio(sum(uplink), sum(summary.float32_bytes()))
    return [
        (
            "mean accuracy",
            accuracy,
            f"{points(*mean)} points, of answers given exactly 1" if mean else "not measured after training",
        ),
        ("clients", str(len(summary.clients)), f"{sum(summary.times_quarantined().values())} replies quarantined"),
        ("rounds", str(len(summary.rounds)), f"{seconds(wall / len(summary.rounds))} each"),
        ("uplink", byte_size(sum(uplink)), f"{sent} of float32"),
    ]
