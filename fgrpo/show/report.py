"""A run's report: pictures, and one page that holds everything and needs nothing."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from fgrpo.errors import RunError
from fgrpo.run_folder import RunFolder
from fgrpo.show.plots import DARK, LIGHT, write_plots
from fgrpo.show.summary import RunSummary
from fgrpo.show.tables import quarantine_table, tables
from fgrpo.show.text import byte_size, percent, points, printable, ratio, seconds

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_ALT_TEXTS = {
    "accuracy": "Bars: held-out accuracy before and after training, per client",
    "accuracy_by_round": "Lines: held-out accuracy of the global model by round, per client",
    "reward": "Lines: mean reward by round, per client",
    "weights": "Lines: aggregation weight by round, per client",
    "bytes": "Bars: bytes sent per round, against float32",
    "time": "Stacked bars: seconds per stage, by round",
}


def write_report(folder: RunFolder) -> Path:
    """Write `RUN/report/*.png` and `RUN/report/index.html`; return the page's path.

    Raises:
        RunError: no round is complete yet, or the report cannot be written.
    """
    summary = RunSummary.of(folder.records())
    if not summary.rounds:
        raise RunError(f"{folder.path}: no round is complete yet, so there is nothing to report")
    report = folder.path / "report"
    page = report / "index.html"
    try:
        report.mkdir(exist_ok=True)
        light, dark = write_plots(summary, report, LIGHT), write_plots(summary, report, DARK, suffix="-dark")
        pictures = [(_ALT_TEXTS[name], _inline(light[name]), _inline(dark[name])) for name in light]
        page.write_text(_render(folder, summary, pictures), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{report}: the report cannot be written: {error.strerror}") from None
    return page


def _render(folder: RunFolder, summary: RunSummary, pictures: list[tuple[str, str, str]]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable  # names and reasons come from outside
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        run=folder.path.resolve().name,
        headline=_headline(summary),
        pictures=pictures,
        tables=tables(summary),
        quarantines=quarantine_table(summary),
        config=folder.config_file.read_text(encoding="utf-8"),
    )


def _headline(summary: RunSummary) -> list[tuple[str, str, str]]:
    """Return what the run comes to, as (what, value, detail)."""
    uplink, wall = summary.uplink_bytes(), sum(summary.round_seconds())
    mean = summary.mean_accuracy()
    accuracy = f"{percent(mean[0])} → {percent(mean[1])}" if mean else "-"
    sent = ratio(sum(uplink), sum(summary.float32_bytes()))
    return [
        ("mean accuracy", accuracy, f"{points(*mean)} points" if mean else "not measured after training"),
        ("clients", str(len(summary.clients)), f"{sum(summary.times_quarantined().values())} replies quarantined"),
        ("rounds", str(len(summary.rounds)), f"{seconds(wall / len(summary.rounds))} each"),
        ("uplink", byte_size(sum(uplink)), f"{sent} of float32"),
    ]


def _inline(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
