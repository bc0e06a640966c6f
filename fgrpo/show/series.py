"""What a run's pictures show, as numbers per round; and what is constant, and so needs no picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from fgrpo.records import Report
from fgrpo.show.summary import RunSummary
from fgrpo.show.text import byte_size, number, percent

_SAME = 1e-6  # relative; weights that differ by less are equal but for rounding


@dataclass(frozen=True)
class Series:
    """Values per name and round.

    Attributes:
        write: how a value is written.
        shared: all have one scale, from 0.
        mark: a value to mark in every panel.
    """

    title: str
    values: Mapping[str, Mapping[int, float]]
    write: Callable[[float | None], str]
    shared: bool = False
    mark: float | None = None

    @property
    def constant(self) -> bool:
        """Whether no value ever changes; a value that is alone does not either."""
        return all(is_constant(values) for values in self.values.values())

    @property
    def several(self) -> bool:
        """Whether there was time to change: more than one round has a value."""
        return len({n for values in self.values.values() for n in values}) > 1

    def range_in_words(self) -> str:
        """Return the values from the smallest to the largest."""
        ends = sorted(value for values in self.values.values() for value in values.values())
        low, high = self.write(ends[0]), self.write(ends[-1])
        return low if low == high else f"{low} to {high}"


def is_constant(values: Mapping[int, float]) -> bool:
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    return high - low <= _SAME * max(abs(low), abs(high))


def accuracy_by_round(summary: RunSummary) -> Series:
    values = {client: {n: e.accuracy for n, e in rounds.items()} for client, rounds in summary.evaluations.items()}
    return Series("Held-out accuracy of the global model", values, percent, shared=True)


def rewards(summary: RunSummary) -> Series:
    values = {client: {n: r.reward_mean for n, r in reports.items()} for client, reports in summary.reports.items()}
    return Series("Mean reward, each client in its own scale", values, number)


def weights(summary: RunSummary) -> Series:
    values = {
        client: {round_.round: round_.weights[client] for round_ in summary.rounds if client in round_.weights}
        for client in summary.clients
    }
    equal = 1 / max((len(round_.weights) + len(round_.quarantined) for round_ in summary.rounds), default=1)
    return Series("Aggregation weight", values, percent, shared=True, mark=equal)


def vital_signs(summary: RunSummary) -> Iterator[Series]:
    """Yield what tells how training fares, each as one line: means over a round's clients, and the server's own."""
    measures: dict[str, tuple[Callable[[Report], float | None], Callable[[float | None], str]]] = {
        "equal groups": (lambda report: report.degenerate, percent),
        "entropy (nats)": (lambda report: report.metrics.get("entropy"), number),
        "completion tokens": (lambda report: report.completion_length, number),
        "gradient norm": (lambda report: report.metrics.get("grad_norm"), number),
    }
    for name, (measure, write) in measures.items():
        values = {}
        for round_ in summary.rounds:
            found = [measure(r[round_.round]) for r in summary.reports.values() if round_.round in r]
            known = [value for value in found if value is not None and math.isfinite(value)]
            if known:
                values[round_.round] = fmean(known)
        yield Series(name, {name: values}, write)
    for name, write, of_round in (
        ("server's step", number, [round_.update_norm for round_ in summary.rounds]),
        ("bytes up", _bytes, [float(count) for count in summary.uplink_bytes()]),
    ):
        yield Series(name, {name: dict(zip((r.round for r in summary.rounds), of_round, strict=True))}, write)


def _bytes(value: float | None) -> str:
    return "-" if value is None else byte_size(value)
