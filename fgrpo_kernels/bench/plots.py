"""Pictures of results: rates against the limit, memory, how things scale, and what a round is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fgrpo_kernels.bench.case import package_of
from fgrpo_kernels.bench.results import Record, by_age, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"fgrpo": "#4053d3", "eager": "#999999", "trl": "#b51d14", "liger": "#ddb310", "compile": "#00beff"}
CODECS = {"int8": "#4053d3", "int4": "#b51d14", "int2": "#00845a"}
STAGES = ("clients", "validate", "aggregate", "server_step", "save")
Draw = Callable[[Record, "Sequence[Axes]"], None]


class Picture(NamedTuple):
    """A file, what is to be seen, and how many panels it has."""

    file: str
    title: str
    content: Record
    draw: Draw
    panels: int


def of_op(op: str, contents: Mapping[Path, Record]) -> list[Picture]:
    """The pictures that an op's results give, or a "round"'s, of the newest on each device."""
    if op not in _DRAWN:
        return []
    draw, panels = _DRAWN[op]
    last: dict[str, Picture] = {}
    for path, content in by_age(contents):
        of_round = path.name.startswith("round_") and "slopes" not in content
        if content.get("op", "round" if of_round else None) == op:
            title = f"{op}, {content['settings']['config']}," if of_round else op
            name = series(path)
            last[name] = Picture(f"{name}.png", f"{title} on {content['header']['device']}", content, draw, panels)
    return [last[name] for name in sorted(last)]


def draw(contents: Mapping[Path, Record], folder: Path) -> list[Path]:
    """Write every picture to the folder; return the files."""
    from matplotlib.figure import Figure  # no pyplot: nothing global

    pictures = [picture for op in _DRAWN for picture in of_op(op, contents)]
    if pictures:
        folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        figure = Figure(figsize=(5.5 * picture.panels, 4), layout="constrained")
        axes = [figure.add_subplot(1, picture.panels, i + 1) for i in range(picture.panels)]
        picture.draw(picture.content, axes)
        head = picture.content["header"]
        figure.suptitle(f"{picture.title}; {head['date'][:10]}", fontsize=9)
        # Without the library's version in it, the same drawing is the same file.
        figure.savefig(folder / picture.file, dpi=100, metadata={"Software": None})
    return [folder / picture.file for picture in pictures]


def _measured(content: Record, case: str) -> list[Record]:
    """Timed records of the cases whose name matches as a whole."""
    return [r for r in content["results"] if "seconds" in r and re.fullmatch(case, r["case"])]


def _lines(axes: Axes, records: Sequence[Record], x: str, y: Callable[[Record], float]) -> None:
    """A line a contender."""
    for name in dict.fromkeys(record["contender"] for record in records):
        points = sorted((r["shape"][x], y(r)) for r in records if r["contender"] == name)
        colour = COLOURS.get(package_of(name), "#555555")
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=4)


def _token_logprobs(content: Record, axes: Sequence[Axes]) -> None:
    """Bytes a second, and a copy's."""
    by_rows = _measured(content, r"forward, \d+ rows")
    several = {r["contender"] for r in by_rows}
    by_rows += [r for r in _measured(content, "forward") if r["contender"] in several]
    for panel, x, records in (
        (axes[0], "rows", by_rows),
        (axes[1], "vocabulary", _measured(content, r"forward, vocabulary \d+")),
    ):
        _lines(panel, records, x, lambda r: r["moved_bytes"] / r["median_s"] / 1e9)
        limits = sorted({(r["shape"][x], r["copy_bytes_per_second"] / 1e9) for r in records})
        if limits:
            panel.plot(*zip(*limits, strict=True), "k--", linewidth=1, label="a copy's bandwidth")
        panel.set_xscale("log", base=2)
        panel.set_ylim(0, 1.1 * panel.get_ylim()[1])  # with room for the legend
        panel.set_xlabel(x)
        panel.set_ylabel("logits read, GB a second")
        panel.legend(fontsize=7, loc="upper center", ncols=3)


def _linear_grpo_loss(content: Record, axes: Sequence[Axes]) -> None:
    """Time and memory by rows that carry signal."""
    records = _measured(content, r"every row informative(, \d+ rows)?")
    several = {r["contender"] for r in _measured(content, r"every row informative, \d+ rows")}
    records = [record for record in records if record["contender"] in several]
    _lines(axes[0], records, "informative", lambda r: 1e3 * r["median_s"])
    axes[0].set_ylabel("forward and backward, ms")
    held = [record for record in records if record.get("peak_bytes") is not None]
    _lines(axes[1], held, "informative", lambda r: r["peak_bytes"] / 2**20)
    axes[1].set_ylabel("memory beyond the inputs, MiB")
    for panel in axes:
        panel.set_xlabel("rows")
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=7)


def _aggregate(content: Record, axes: Sequence[Axes]) -> None:
    """By clients and by threads, and eight clients beside other ways to average."""
    by_clients, by_threads, beside = axes
    threads = content["settings"]["threads"]
    for codec, colour in CODECS.items():
        scaling = _measured(content, rf"{codec}, \d+ clients, \d+ threads")
        at_most = [r for r in scaling if r["threads"] == threads]
        if not at_most:
            continue
        points = sorted((r["shape"]["clients"], r["rate"] / 1e9) for r in at_most)
        limits = sorted((r["shape"]["clients"], r["rate"] / r["fraction_of_limit"] / 1e9) for r in at_most)
        by_clients.plot(*zip(*points, strict=True), "o-", color=colour, label=codec)
        by_clients.plot(*zip(*limits, strict=True), "--", color=colour, linewidth=1, label=f"{codec}, bandwidth limit")
        points = sorted((r["threads"], r["rate"] / 1e9) for r in scaling if r["shape"]["clients"] == 8)
        by_threads.plot(*zip(*points, strict=True), "o-", color=colour, label=codec)
    by_clients.set_xscale("log", base=2)
    for panel, label in ((by_clients, "clients K"), (by_threads, "threads")):
        panel.set_xlabel(label)
        panel.set_ylabel("K x parameters, 1e9 a second")
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=7)
    _bars(beside, _measured(content, r"int[84], block 64"))


def _bars(axes: Axes, records: Sequence[Record]) -> None:
    labels = [f"{r['contender']}, {r['shape']['codec']}" for r in records][::-1]
    rates = [r["rate"] / 1e9 for r in records][::-1]
    colours = [COLOURS["fgrpo"] if label.startswith("fgrpo") else "#999999" for label in labels]
    axes.bar_label(axes.barh(labels, rates, color=colours), fmt="%.2f", padding=2, fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(x=0.15)
    axes.set_xlabel("K x parameters, 1e9 a second")


def _round(content: Record, axes: Sequence[Axes]) -> None:
    """A bar a contender, of the stages that it tells apart; what is left is one more."""
    (panel,) = axes
    measured = [r for r in content["results"] if "not_measured" not in r][::-1]
    names = [record["name"] for record in measured]
    left = [0.0] * len(measured)
    for stage in STAGES:
        seconds = [record["stages_s"].get(stage, 0.0) for record in measured]
        if any(seconds):
            panel.barh(names, seconds, left=left, label=stage.replace("_", " "))
            left = [a + b for a, b in zip(left, seconds, strict=True)]
    others = [max(0.0, r["round_s"]["median"] - done) for r, done in zip(measured, left, strict=True)]
    panel.barh(names, others, left=left, color="#cccccc", label="not told apart")
    panel.set_xlabel("seconds a round")
    panel.legend(fontsize=7)


_DRAWN: dict[str, tuple[Draw, int]] = {
    "round": (_round, 1),
    "token_logprobs": (_token_logprobs, 2),
    "linear_grpo_loss": (_linear_grpo_loss, 2),
    "aggregate": (_aggregate, 3),
}
