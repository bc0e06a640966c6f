"""The report's pictures: small panels as SVG without text in it, which a page lays out for any width and theme.

A panel stretches to its place, so lines keep their width by `vector-effect`, and a dot is a line of no length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from fgrpo.show.series import Series, is_constant
from fgrpo.show.text import named, percent, points, printable

COLOURS = 8  # for what adds up, as classes of the page's style
_WIDTH, _HEIGHT = 100.0, 40.0  # a panel's own units
_MARGIN = 2.0  # within which dots are whole
_LINES_IN_A_PANEL = 8  # with more, the other clients are a blur
_DOTTED = 40  # rounds; with more, dots hide the line


@dataclass(frozen=True)
class Panel:
    """One client's or one measure's drawing.

    Attributes:
        note: how its values begin and end.
        low, high: what the lower and the upper edge stand for; empty where that goes without saying.
    """

    name: str
    note: str
    svg: Markup
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Picture:
    """Panels of one kind under one title.

    Attributes:
        layout: `grid` of panels with axes, or `rows` with the name before each panel and the note after it.
        legend: colour (a class of the page's style) and text.
    """

    title: str
    panels: tuple[Panel, ...]
    layout: str = "grid"
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""


def line_picture(series: Series, shown: Sequence[str], crosses: Mapping[str, Sequence[int]] | None = None) -> Picture:
    """Draw those of some series that change, each in a panel of its own, value against round.

    Args:
        shown: the names that there is room for.
        crosses: rounds to mark, by name.
    """
    crosses = crosses or {}
    drawn = [name for name in shown if not is_constant(series.values.get(name, {})) or crosses.get(name)]
    every = [value for name in drawn for value in series.values.get(name, {}).values()]
    rounds = sorted({n for values in series.values.values() for n in values})
    panels = []
    for name in drawn:
        values = series.values.get(name, {})
        own = every if series.shared else list(values.values())
        low, high = min([0.0, *own] if series.shared else own, default=0.0), max(own, default=1.0)
        place = _Place(rounds[0], rounds[-1], low, high)
        parts = []
        if series.shared and len(drawn) <= _LINES_IN_A_PANEL:
            parts += [_path("other", place.line(series.values.get(other, {}))) for other in drawn if other != name]
        if series.mark is not None:
            parts.append(_path("mark", f"M0 {place.y(series.mark):.2f}H{_WIDTH:g}"))
        parts.append(_path("line", place.line(values)))
        if len(rounds) <= _DOTTED:
            parts += [_dot("dot", place, n, v, f"round {n}: {series.write(v)}") for n, v in sorted(values.items())]
        parts += [_dot("cross", place, n, low, f"round {n}: quarantined") for n in crosses.get(name, ())]
        ends = _ends([series.write(value) for _, value in sorted(values.items())])
        panels.append(Panel(name, ends, _svg(parts, f"{name}: {ends}"), series.write(low), series.write(high)))
    notes = _notes(series, shown, drawn, rounds, any(map(crosses.get, drawn)))
    return Picture(series.title, tuple(panels), note="; ".join(notes))


def _notes(
    series: Series, shown: Sequence[str], drawn: Sequence[str], rounds: Sequence[int], crossed: bool
) -> Iterator[str]:
    yield f"rounds {rounds[0]} to {rounds[-1]}"
    if crossed:
        yield "crosses: quarantined"
    if len(series.values) > len(shown):
        yield f"{len(shown)} of {len(series.values)} clients"
    flat = {name: series.values[name] for name in shown if name not in drawn and series.values.get(name)}
    if flat:
        yield f"not drawn, as constant: {named(flat)} ({replace(series, values=flat).range_in_words()})"


def bar_picture(title: str, bars: Sequence[tuple[str, float | None, float | None]]) -> Picture:
    """Draw shares before and after as bars, one row each."""
    panels = []
    for name, before, after in bars:
        rects = [
            Markup('<rect class="{}" x="0" y="{}" width="{:.2f}" height="18"/>').format(kind, y, 100 * value)
            for kind, y, value in (("before", 1, before), ("after", 21, after))
            if value is not None
        ]
        shares = _ends([percent(value) for value in (before, after) if value is not None])
        gained = points(before, after)
        note = shares if gained == "-" else f"{shares} ({gained})"
        panels.append(Panel(name, note, _svg(rects, f"{name}: {note}")))
    return Picture(title, tuple(panels), "rows", (("before", "before training"), ("after", "after")))


def stack_picture(title: str, stages: Mapping[str, Sequence[float]], labels: Sequence[str], high: str) -> Picture:
    """Draw what adds up in a round as one column per round, in a single panel.

    Args:
        stages: values per round, from the bottom up.
        labels: the legend's text per stage.
        high: what the upper edge stands for, the largest sum.
    """
    columns = list(zip(*stages.values(), strict=True))
    top, width = max(map(sum, columns)), _WIDTH / len(columns)
    parts = []
    for at in range(len(stages)):
        boxes = [
            _box(column * width, _HEIGHT * (1 - sum(values[: at + 1]) / top), 0.96 * width, _HEIGHT * values[at] / top)
            for column, values in enumerate(columns)
        ]
        parts.append(_path(_colour(at), "".join(boxes)))
    legend = tuple((_colour(at), label) for at, label in enumerate(labels))
    return Picture(title, (Panel("", "", _svg(parts, title), "0", high),), legend=legend)


def count_picture(title: str, counts: Mapping[str, Mapping[str, int]], kinds: Sequence[str]) -> Picture:
    """Draw counts as bars, one row each, made up of kinds.

    Args:
        counts: by name and kind.
        kinds: those with a colour of their own; all others share the one after them.
    """
    longest = max(sum(of_name.values()) for of_name in counts.values())
    others = any(kind not in kinds for of_name in counts.values() for kind in of_name)
    panels = []
    for name, of_name in counts.items():
        lengths = [of_name.get(kind, 0) for kind in kinds]
        lengths += [sum(of_name.values()) - sum(lengths)] if others else []
        starts = [sum(lengths[:at]) for at in range(len(lengths))]
        boxes = [_box(_WIDTH * s / longest, 4, _WIDTH * n / longest, 32) for s, n in zip(starts, lengths, strict=True)]
        parts = [_path(_colour(at), box) for at, box in enumerate(boxes)]
        note = f"{sum(of_name.values()):,}"
        panels.append(Panel(name, note, _svg(parts, f"{name}: {note}")))
    legend = [(_colour(at), kind) for at, kind in enumerate([*kinds, *(["others"] if others else [])])]
    return Picture(title, tuple(panels), "rows", tuple(legend) if len(legend) > 1 else ())


@dataclass(frozen=True)
class _Place:
    """Where rounds and values lie in a panel."""

    first: int
    last: int
    low: float
    high: float

    def x(self, number: int) -> float:
        span = max(1, self.last - self.first)
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * (number - self.first) / span

    def y(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (value - self.low) / span

    def line(self, values: Mapping[int, float]) -> str:
        """Return a path through the values; a client that was not heard in a round is passed over."""
        steps = [f"{self.x(n):.2f} {self.y(value):.2f}" for n, value in sorted(values.items())]
        return "M" + "L".join(steps) if steps else ""


def _colour(at: int) -> str:
    return f"stage-{at % COLOURS}"


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:.2f} {y:.2f}h{width:.2f}v{height:.2f}h{-width:.2f}z"


def _path(kind: str, steps: str) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(kind, steps)


def _dot(kind: str, place: _Place, number: int, value: float, title: str) -> Markup:
    at = f"M{place.x(number):.2f} {place.y(value):.2f}h0"
    return Markup('<path class="{}" d="{}"><title>{}</title></path>').format(kind, at, title)


def _svg(parts: Iterable[Markup], label: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {:g} {:g}" preserveAspectRatio="none" role="img" aria-label="{}">')
    return head.format(_WIDTH, _HEIGHT, printable(label)) + Markup("").join(parts) + Markup("</svg>")


def _ends(values: Sequence[str]) -> str:
    return f"{values[0]} → {values[-1]}" if len(values) > 1 else "".join(values)
