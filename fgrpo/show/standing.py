"""How a client stands among the others: why it hardly takes part, and what it weighs against its share of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fgrpo.records import Report
from fgrpo.show.summary import RunSummary
from fgrpo.show.text import percent

STARVED = 0.2  # of an equal share
MISSED = 0.5  # of a client's rounds, or of its completions
EQUAL = 0.9  # share of groups with equal rewards from which there is nothing to learn from
_AS_ROWS = 0.5  # of its share of rows: a weight from there on is small because the rows are few
_BEYOND_ROWS = 3.0  # times its share of rows
_BEYOND_EQUAL = 1.2  # times an equal share: to weigh clients alike is no remarkable rule

Cause = Literal["no rows", "quarantined", "unrewarded", "few rows", "uninformative", "rule"]


@dataclass(frozen=True)
class Lag:
    """Why a client hardly takes part, and the numbers that say so."""

    cause: Cause
    evidence: str


@dataclass(frozen=True)
class Weight:
    """What a client weighed in the rounds that used its reply, on average.

    Attributes:
        share: of a round's update.
        of_equal: the same as a part of an equal share.
        rows, all_rows: its training rows, and those of a round's clients together; None where they are not known.
        of_rows: its share of them.
    """

    share: float
    of_equal: float
    rows: int | None
    all_rows: int | None
    of_rows: float | None

    def against_rows(self) -> str:
        """Return both shares in words, where the rows are known."""
        if self.of_rows is None:
            return f"its weight is {percent(self.of_equal)} of an equal share ({percent(self.share)})"
        return (
            f"its mean weight is {percent(self.share)}, its share of rows {percent(self.of_rows)} "
            f"({self.rows:,} of {self.all_rows:,})"
        )

    @property
    def beyond_rows(self) -> bool:
        """Whether it is far beyond the share of rows, and beyond that of most clients too."""
        return self.of_rows is not None and self.of_equal >= _BEYOND_EQUAL and self.share >= _BEYOND_ROWS * self.of_rows


def lag(summary: RunSummary, client: str) -> Lag | None:
    """Return why a client hardly takes part; None if it does, or if it was never asked."""
    reports = summary.reports.get(client, {}).values()
    if any(data.client == client and data.rows == 0 for data in summary.data):
        return Lag("no rows", "no training rows")
    missed = summary.times_quarantined()[client]
    if missed and missed >= MISSED * (missed + len(reports)):
        return Lag("quarantined", f"replies quarantined in {missed} of {missed + len(reports)} rounds")
    left_out = sum(report.unrewarded for report in reports)
    if left_out and left_out >= MISSED * (left_out + sum(report.sequences for report in reports)):
        return Lag("unrewarded", f"{left_out:,} of its completions got no reward")
    weighed = weight(summary, client)
    if weighed is None or weighed.of_equal >= STARVED:
        return None
    if weighed.of_rows is not None and weighed.share >= _AS_ROWS * weighed.of_rows:
        return Lag("few rows", weighed.against_rows())
    equal = fmean(report.degenerate for report in reports) if reports else 0.0
    if equal >= EQUAL:
        return Lag("uninformative", f"{weighed.against_rows()}; {percent(equal)} of its groups had equal rewards")
    return Lag("rule", weighed.against_rows())


def weight(summary: RunSummary, client: str) -> Weight | None:
    """Return what a client weighed; None if no round used a reply of its."""
    rounds = [round_.weights for round_ in summary.rounds if client in round_.weights]
    if not rounds:
        return None
    rows = _rows(summary)
    known = [[rows[c] for c in weights] for weights in rounds] if all(c in rows for w in rounds for c in w) else []
    totals = [sum(of_round) for of_round in known]
    return Weight(
        share=fmean(weights[client] for weights in rounds),
        of_equal=fmean(weights[client] * len(weights) for weights in rounds),
        rows=rows.get(client),
        all_rows=round(fmean(totals)) if totals else None,
        of_rows=fmean(rows[client] / total for total in totals) if all(totals) and totals else None,
    )


def unasked(summary: RunSummary) -> Iterator[str]:
    """Yield the clients that have rows, and were asked in no round."""
    for data in summary.data:
        asked = summary.reports.get(data.client) or summary.times_quarantined()[data.client]
        if data.rows != 0 and not asked:
            yield data.client


def _rows(summary: RunSummary) -> Mapping[str, int]:
    """Return every client's training rows where they end."""
    told = {data.client: data.rows for data in summary.data}
    for client, reports in summary.reports.items():
        last: Report | None = reports[max(reports)] if reports else None
        told.setdefault(client, last.rows if last else None)
    return {client: rows for client, rows in told.items() if rows}
