"""A run's pictures as files, for slides and papers; the page draws its own, for any width (`fgrpo/show/charts.py`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from fgrpo.show.series import Series, accuracy_by_round, is_constant, rewards, weights
from fgrpo.show.summary import RunSummary
from fgrpo.show.text import byte_size, percent, points, printable, ratio, seconds
from fgrpo.show.theme import LIGHT

_WIDTH, _DPI = 8.0, 150  # inches, pixels per inch
_LINES_IN_A_PANEL = 8  # with more, the other clients are a grey blur
_STAGE_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#F0E442", "#999999")


def write_plots(summary: RunSummary, folder: Path) -> dict[str, Path]:
    """Write every picture that the run has data for as `folder/<name><suffix>.png`; return the files by name."""
    style: dict[Any, Any] = {
        "figure.facecolor": LIGHT.paper,
        "axes.facecolor": LIGHT.paper,
        "savefig.facecolor": LIGHT.paper,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), LIGHT.ink),
        **dict.fromkeys(("xtick.color", "ytick.color"), LIGHT.faint),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), LIGHT.ink),
        "axes.edgecolor": LIGHT.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9.0,
        "text.parse_math": False,  # a client may be called a$b
    }
    paths = {}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box in the picture; the tables have the name
        for name, draw in _PLOTS.items():
            figure = draw(summary)
            if figure is not None:
                paths[name] = folder / f"{name}.png"
                figure.savefig(paths[name], dpi=_DPI)
    return paths


def _reward(summary: RunSummary) -> Figure | None:
    return _small_multiples(summary, rewards(summary))


def _accuracy_by_round(summary: RunSummary) -> Figure | None:
    series = accuracy_by_round(summary)
    if max(map(len, series.values.values()), default=0) < 3:
        return None  # the bars say it all
    return _small_multiples(summary, series, every_round=False)


def _weights(summary: RunSummary) -> Figure | None:
    return _small_multiples(summary, weights(summary))


def _small_multiples(summary: RunSummary, series: Series, *, every_round: bool = True) -> Figure | None:
    """Draw one small panel per client, value against round; None if nothing changes.

    Args:
        every_round: a round without a value breaks the line, and a cross says so where the client was quarantined.
    """
    if series.constant:
        return None
    title, text, shared, values = series.title, series.write, series.shared, series.values
    if series.mark is not None:
        title += f" (dashed: equal weights, {text(series.mark)})"
    shown = summary.shown()
    if len(shown) < len(summary.clients):
        title += f" ({len(shown)} of {len(summary.clients)} clients)"
    figure, panels = _panel_grid(title, len(shown), shared)
    rounds = [s.round for s in summary.rounds]
    lines = {client: _line(values[client], rounds if every_round else sorted(values[client])) for client in shown}
    others_too = shared and len(lines) <= _LINES_IN_A_PANEL
    for client, panel in zip(shown, panels, strict=True):
        for other in lines if others_too else ():
            if other != client:
                panel.plot(*lines[other], color=LIGHT.faint, linewidth=0.7)
        if series.mark is not None:
            panel.axhline(series.mark, color=LIGHT.ink, linewidth=0.8, linestyle=(0, (4, 3)))
        dots = 3.2 if len(rounds) <= 40 else 1.8
        panel.plot(*lines[client], color=LIGHT.data, linewidth=1.8, marker="o", markersize=dots)
        if every_round:
            _mark_quarantined(panel, summary, client)
        _name_panel(panel, client, [text(value) for _, value in sorted(values[client].items())])
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, text)))
        if shared:
            panel.set_ylim(bottom=0)
    if every_round and any(s.quarantined for s in summary.rounds):
        figure.text(0.99, 0.08 / figure.get_figheight(), "crosses: quarantined", ha="right", color=LIGHT.warning)
    return figure


def _panel_grid(title: str, count: int, shared: bool) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, laid out in inches: matplotlib's own layout takes seconds for twenty."""
    columns = next(n for n, limit in ((1, 1), (2, 4), (3, 9), (4, math.inf)) if count <= limit)
    rows = -(-count // columns)
    left, right, top, bottom = 0.6, 0.1, 0.8, 0.5
    gap, between = 0.25 if shared else 0.6, 0.6
    height = 2.0 if columns == 1 else 1.2
    figure = Figure(figsize=(_WIDTH, top + rows * height + (rows - 1) * between + bottom))
    width = (_WIDTH - left - right - (columns - 1) * gap) / columns
    panels = figure.subplots(rows, columns, sharex=True, sharey=shared, squeeze=False)
    figure.subplots_adjust(
        left=left / _WIDTH,
        right=1 - right / _WIDTH,
        top=1 - top / figure.get_figheight(),
        bottom=bottom / figure.get_figheight(),
        wspace=gap / width,
        hspace=between / height,
    )
    figure.suptitle(title, x=0.01, y=1 - 0.08 / figure.get_figheight(), ha="left", fontsize=11, fontweight="bold")
    figure.text(left / _WIDTH, 0.08 / figure.get_figheight(), "round")
    for at, panel in enumerate(panels.flat):
        panel.set_axis_off() if at >= count else panel.tick_params(labelsize=8, labelbottom=at + columns >= count)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6 if columns > 1 else 12, min_n_ticks=1))
        panel.yaxis.set_major_locator(MaxNLocator(nbins=4))
    return figure, list(panels.flat)[:count]


def _name_panel(panel: Axes, client: str, values: list[str]) -> None:
    """Write the client's name above its panel, and below the name how its values began and ended."""
    inches = panel.get_position().width * _WIDTH
    panel.set_title(_short(client, round(12 * inches)), loc="left", fontsize=9, fontweight="bold", pad=15)
    if values:
        ends = f"{values[0]} → {values[-1]}" if len(values) > 1 else values[0]
        panel.annotate(ends, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8)


def _line(values: Mapping[int, float], rounds: list[int]) -> tuple[list[int], list[float]]:
    """Return what to plot: NaN, at which a line breaks, in the rounds without a value."""
    return rounds, [values.get(n, math.nan) for n in rounds]


def _mark_quarantined(panel: Axes, summary: RunSummary, client: str) -> None:
    rounds = [s.round for s in summary.rounds if client in s.quarantined]
    transform = panel.get_xaxis_transform()  # rounds across, panel height up
    panel.plot(rounds, [0.06] * len(rounds), "x", color=LIGHT.warning, markersize=4.5, transform=transform)


def _tick(value: float, text: Callable[[float | None], str]) -> str:
    return f"{100 * value:.0f}%" if text is percent else f"{value:.3g}"


def _accuracy(summary: RunSummary) -> Figure | None:
    bars = [(client, *summary.accuracy(client)) for client in summary.shown() if summary.evaluations[client]]
    if not bars:
        return None
    mean = summary.mean_accuracy() if len(bars) > 1 else None
    if mean:
        bars.append(("mean", *mean))
    figure = Figure(figsize=(_WIDTH, 1.0 + 0.5 * len(bars)), layout="constrained")
    title = "Held-out accuracy before training"
    if summary.evaluated_after:
        title += f" (grey) and after round {summary.evaluated_after} (blue)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes = figure.subplots()
    for row, (_, before, after) in enumerate(bars):
        for value, colour, offset in ((before, LIGHT.faint, -0.19), (after, LIGHT.data, 0.19)):
            if value is not None:
                axes.barh(row + offset, value, height=0.36, color=colour)
                axes.text(value + 0.008, row + offset, percent(value), va="center", fontsize=8)
        gained = points(before, after)
        if gained != "-":
            axes.text(1.22, row, f"{gained} points", va="center", ha="right", fontweight="bold")
    axes.set_yticks(range(len(bars)), [_short(client, 28) for client, *_ in bars])
    if mean:
        axes.get_yticklabels()[-1].set_fontweight("bold")
        axes.axhline(len(bars) - 1.5, color=LIGHT.faint, linewidth=0.8)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1.23)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.tick_params(axis="y", length=0)
    return figure


def _bytes(summary: RunSummary) -> Figure | None:
    uplink, float32 = summary.uplink_bytes(), summary.float32_bytes()
    if is_constant(dict(enumerate(uplink))):
        return None
    part = ratio(sum(uplink), sum(float32))
    figure = Figure(figsize=(_WIDTH, 2.7), layout="constrained")
    figure.suptitle(f"Uplink per round: {part} of float32", x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes, rounds = figure.subplots(), [s.round for s in summary.rounds]
    for values, what, colour in ((float32, "as float32", LIGHT.faint), (uplink, "sent", LIGHT.data)):
        label = f"{what}  {byte_size(fmean(values))} a round"
        axes.stairs(values, _edges(rounds), fill=True, color=colour, label=label)
    _round_axis(axes, rounds)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_size(value) if value else "0"))
    figure.legend(loc="outside right center", frameon=False, alignment="left")
    return figure


def _time(summary: RunSummary) -> Figure | None:
    stages = summary.stage_seconds()
    if not stages:
        return None
    figure = Figure(figsize=(_WIDTH, 3.0), layout="constrained")
    title = "Time per round and stage, added up over clients"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes, rounds = figure.subplots(), [s.round for s in summary.rounds]
    bottom, total = [0.0] * len(rounds), sum(map(sum, stages.values())) or 1.0
    for at, (stage, spent) in enumerate(stages.items()):
        label = f"{stage}  {seconds(sum(spent))}  {percent(sum(spent) / total)}"
        colour, top = _STAGE_COLOURS[at % len(_STAGE_COLOURS)], [a + b for a, b in zip(bottom, spent, strict=True)]
        axes.stairs(top, _edges(rounds), baseline=bottom, fill=True, color=colour, label=label)
        bottom = top
    _round_axis(axes, rounds)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value) if value else "0"))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False, alignment="left")
    return figure


def _edges(rounds: list[int]) -> list[float]:
    """Return where each round's column begins, and where the last one ends; one shape is far faster than many bars."""
    return [*(n - 0.5 for n in rounds), rounds[-1] + 0.5]


def _round_axis(axes: Axes, rounds: list[int]) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True) if len(rounds) > 5 else FixedLocator(rounds))
    margin = max(0.6, (6 - len(rounds)) / 2)  # a lone bar should not fill the picture
    axes.set_xlim(rounds[0] - margin, rounds[-1] + margin)
    axes.set_ylim(bottom=0)


def _short(name: str, length: int) -> str:
    name = printable(name)
    return name if len(name) <= length else name[: max(1, length - 1)] + "…"


_PLOTS: dict[str, Callable[[RunSummary], Figure | None]] = {
    "accuracy": _accuracy,
    "accuracy_by_round": _accuracy_by_round,
    "reward": _reward,
    "weights": _weights,
    "bytes": _bytes,
    "time": _time,
}
