"""A study's pictures, small enough to be read on a phone: one scenario in each."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fgrpo.show.text import printable
from fgrpo.show.theme import DARK, LIGHT, Theme
from fgrpo.study.comparison import Row, Runs
from fgrpo.study.intervals import t_interval
from fgrpo.study.measures import Curve
from fgrpo.study.spec import Study, slug

_WIDTH, _DPI = 4.6, 130  # inches, pixels per inch
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#8C6D31")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_MOST_CLIENTS = 8  # weights of more are a grey blur but for the first ones


class Picture(NamedTuple):
    """A picture: what it shows, in words, and its files for light and for dark pages."""

    alt: str
    light: Path
    dark: Path

    @staticmethod
    def inline(file: Path) -> str:
        """Return a file's content as an address."""
        return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def write_plots(study: Study, runs: Sequence[Runs], rows: Sequence[Row], folder: Path) -> dict[str, list[Picture]]:
    """Write the pictures that each scenario has data for, and return them by scenario."""
    pictures: dict[str, list[Picture]] = {}
    for scenario in study.scenarios:
        group = [run for run in runs if run.pair.scenario == scenario and run.curves]
        own_rows = [row for row in rows if row.scenario == scenario.name]
        drawn = pictures.setdefault(scenario.name, [])
        for name, draw in _PLOTS.items():
            paths = []
            for theme, suffix in ((LIGHT, ""), (DARK, "-dark")):
                with rc_context(_style(theme)):
                    figure = draw(study, group, own_rows, theme)
                    if figure is None:
                        break
                    paths.append(folder / f"{slug(scenario.name)}-{name}{suffix}.png")
                    figure.savefig(paths[-1], dpi=_DPI)
            if len(paths) == 2:
                drawn.append(Picture(f"{_ALT_TEXTS[name]}, scenario {scenario.name}", *paths))
    return pictures


def _style(theme: Theme) -> dict[Any, Any]:
    return {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.paper),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), theme.ink),
        **dict.fromkeys(("xtick.color", "ytick.color"), theme.faint),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), theme.ink),
        "axes.edgecolor": theme.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9.0,
        "text.parse_math": False,  # an arm may be called a$b
    }


def _looks(study: Study, theme: Theme) -> dict[str, dict[str, Any]]:
    """Return every arm's colour and dashes, the same in all pictures; baselines are of the ink's colour."""
    looks = {}
    federated = [arm for arm in study.arms if arm.baseline is None]
    for at, arm in enumerate(federated):
        dashes = _DASHES[at // len(_COLOURS) % len(_DASHES)]
        looks[arm.name] = {"color": _COLOURS[at % len(_COLOURS)], "linestyle": dashes}
    for at, arm in enumerate(arm for arm in study.arms if arm.baseline is not None):
        looks[arm.name] = {"color": theme.ink, "linestyle": _DASHES[1 + at % 3]}
    return looks


def _curves(study: Study, group: Sequence[Runs], rows: Sequence[Row], theme: Theme) -> Figure | None:
    if not group:
        return None
    looks = _looks(study, theme)
    figure, axes = _figure("Held-out accuracy, mean over clients", 2.5, legend=len(group))
    reference = next((run for run in group if run.pair.arm.name == study.reference), None)
    banded = False
    for run in group:
        name = run.pair.arm.name
        mean = _mean_curve(run)
        axes.plot(list(mean), list(mean.values()), linewidth=1.6, label=_legend(name, 26), **looks[name])
        if reference is not None and run is not reference and (band := _band(run, reference)):
            rounds, *bounds = zip(*band, strict=True)
            low, high = ([min(max(bound, 0.0), 1.0) for bound in side] for side in bounds)  # no accuracy is beyond
            axes.fill_between(rounds, low, high, color=looks[name]["color"], alpha=0.13, linewidth=0)
            banded = True
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _rounds_axis(axes)
    if banded:
        what = f"bands: 95% intervals of the difference to {_short(study.reference, 20)}"
        axes.set_title(what, loc="left", fontsize=8)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)
    return figure


def _mean_curve(run: Runs) -> dict[int, float]:
    """Return accuracy by round, mean over seeds."""
    lines = [dict(zip(curve.rounds, curve.mean, strict=True)) for curve in run.curves.values()]
    return {n: fmean(line[n] for line in lines if n in line) for n in sorted(set().union(*lines))}


def _band(run: Runs, reference: Runs) -> list[tuple[int, float, float]]:
    """Return (round, low, high) around an arm's mean: as wide as the interval of its difference to the reference.

    Seeds differ far more from each other than arms do with the same seed, so a band of the mean would hide everything.
    """
    mean, found = _mean_curve(run), []
    both = [(curve, reference.curves[seed]) for seed, curve in run.curves.items() if seed in reference.curves]
    for number in mean:
        pairs = [(ours, theirs) for ours, theirs in both if number in ours.rounds and number in theirs.rounds]
        differences = [_at(ours, number) - _at(theirs, number) for ours, theirs in pairs]
        if (interval := t_interval(differences)) is not None:
            half = (interval.high - interval.low) / 2
            found.append((number, mean[number] - half, mean[number] + half))
    return found


def _at(curve: Curve, number: int) -> float:
    return curve.mean[curve.rounds.index(number)]


def _differences(study: Study, group: Sequence[Runs], rows: Sequence[Row], theme: Theme) -> Figure | None:
    bars = [(row.arm, 100 * row.against.final.value, _scaled(row.against.final.t, 100)) for row in rows if row.against]
    title = f"Final accuracy: points against {_short(study.reference, 20)}"
    return _forest(title, bars, 0.0, _looks(study, theme), theme)


def _speed(study: Study, group: Sequence[Runs], rows: Sequence[Row], theme: Theme) -> Figure | None:
    bars = [
        (row.arm, row.against.speed_up.value, _scaled(row.against.speed_up.bootstrap, 1))
        for row in rows
        if row.against and row.against.speed_up and math.isfinite(row.against.speed_up.value)
    ]
    title = f"Times fewer rounds to {_short(study.reference, 16)}'s final accuracy"
    return _forest(title, bars, 1.0, _looks(study, theme), theme)


def _scaled(interval: Any, factor: float) -> tuple[float, float] | None:
    return None if interval is None else (factor * interval.low, factor * interval.high)


def _forest(
    title: str,
    bars: Sequence[tuple[str, float, tuple[float, float] | None]],
    line: float,
    looks: Mapping[str, Mapping[str, Any]],
    theme: Theme,
) -> Figure | None:
    """Draw a value with its interval per arm, and the line on which there is no difference."""
    if not bars:
        return None
    figure, axes = _figure(title, 0.5 + 0.26 * len(bars), legend=0)
    axes.axvline(line, color=theme.ink, linewidth=0.8, linestyle=(0, (4, 3)))
    for at, (name, value, interval) in enumerate(bars):
        colour = looks[name]["color"]
        if interval is not None:
            axes.plot(interval, (at, at), color=colour, linewidth=1.6)
        axes.plot(value, at, "o", color=colour, markersize=4.5)
    axes.set_yticks(range(len(bars)), [_short(name, 22) for name, *_ in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    return figure


def _weights(study: Study, group: Sequence[Runs], rows: Sequence[Row], theme: Theme) -> Figure | None:
    panels = [(run, weights) for run in group if (weights := _mean_weights(run)) and not _constant(weights)]
    if not panels:
        return None
    title = "Weights by round, mean over seeds"
    figure = Figure(figsize=(_WIDTH, 0.9 + 1.35 * len(panels)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (run, weights) in zip(all_axes, panels, strict=True):
        for at, (client, line) in enumerate(weights.items()):
            few = at < _MOST_CLIENTS
            colour = _COLOURS[at] if few else theme.faint
            label = _legend(client, 18) if few else None
            axes.plot(list(line), list(line.values()), color=colour, linewidth=1.3, label=label)
        axes.set_title(_short(run.pair.arm.name, 40), loc="left", fontsize=8.5)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
        axes.set_ylim(bottom=0)
    _rounds_axis(all_axes[-1])
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    return figure


def _mean_weights(run: Runs) -> dict[str, dict[int, float]]:
    """Return weight by client and round, mean over seeds; nothing for baselines."""
    if run.pair.arm.baseline is not None:
        return {}
    found: dict[str, dict[int, list[float]]] = {}
    for result in run.results.values():
        for client, line in result.weights.items():
            for number, weight in line.items():
                found.setdefault(client, {}).setdefault(number, []).append(weight)
    return {client: {n: fmean(line[n]) for n in sorted(line)} for client, line in found.items()}


def _constant(weights: Mapping[str, Mapping[int, float]]) -> bool:
    return all(max(line.values()) - min(line.values()) < 1e-9 for line in weights.values())


def _figure(title: str, height: float, legend: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, 0.6 + height + 0.18 * -(-legend // 2)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure, figure.subplots()


def _rounds_axis(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _short(name: str, length: int) -> str:
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def _legend(name: str, length: int) -> str:
    """Return a name as a legend shows it; matplotlib leaves those out that begin with an underscore."""
    short = _short(name, length)
    return f" {short}" if short.startswith("_") else short


_Draw = Callable[[Study, Sequence[Runs], Sequence[Row], Theme], "Figure | None"]
_PLOTS: dict[str, _Draw] = {"curves": _curves, "differences": _differences, "speed": _speed, "weights": _weights}
_ALT_TEXTS = {
    "curves": "Lines: held-out accuracy by round, per arm",
    "differences": "Dots with intervals: difference of the final accuracy to the reference arm",
    "speed": "Dots with intervals: how many times fewer rounds than the reference arm",
    "weights": "Lines: aggregation weight by round, per client",
}
