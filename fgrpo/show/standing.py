"""How a client stands among the others: why it hardly takes part, and what it weighs against its share of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def weights(summary: RunSummary) -> dict[str, Weight]:
    """Return what each client weighed, of those whose reply some round used."""
    rows = _rows(summary)
    shares: dict[str, list[tuple[float, float]]] = {}
    totals: dict[str, list[int | None]] = {}  # by client, all rows of each of its rounds
    for round_ in summary.rounds:
        of_round = round_.weights
        total = sum(rows[client] for client in of_round) if all(client in rows for client in of_round) else None
        for client, share in of_round.items():
            shares.setdefault(client, []).append((share, share * len(of_round)))
            totals.setdefault(client, []).append(total)
    return {client: _weight(of_client, rows.get(client), totals[client]) for client, of_client in shares.items()}


def _weight(shares: Sequence[tuple[float, float]], rows: int | None, totals: Sequence[int | None]) -> Weight:
    known = [total for total in totals if total is not None]
    told = rows is not None and len(known) == len(totals)
    return Weight(
        share=fmean(share for share, _ in shares),
        of_equal=fmean(of_equal for _, of_equal in shares),
        rows=rows if told else None,
        all_rows=round(fmean(known)) if told else None,
        of_rows=fmean(rows / total for total in known) if rows is not None and told else None,
    )


def lags(summary: RunSummary, weighed: Mapping[str, Weight]) -> dict[str, Lag]:
    """Return why clients hardly take part, of those that do not; whoever was never asked is none of them."""
    no_rows, missed = {data.client for data in summary.data if data.rows == 0}, summary.times_quarantined()
    found = {
        client: Lag("no rows", "no training rows")
        if client in no_rows
        else _lag(list(summary.reports.get(client, {}).values()), missed[client], weighed.get(client))
        for client in dict.fromkeys([*(data.client for data in summary.data), *summary.clients])
    }
    return {client: lag for client, lag in found.items() if lag is not None}


def _lag(reports: Sequence[Report], missed: int, weighed: Weight | None) -> Lag | None:
    if missed and missed >= MISSED * (missed + len(reports)):
        return Lag("quarantined", f"replies quarantined in {missed} of {missed + len(reports)} rounds")
    left_out = sum(report.unrewarded for report in reports)
    if left_out and left_out >= MISSED * (left_out + sum(report.sequences for report in reports)):
        return Lag("unrewarded", f"{left_out:,} of its completions got no reward")
    if weighed is None or weighed.of_equal >= STARVED:
        return None
    if weighed.of_rows is not None and weighed.share >= _AS_ROWS * weighed.of_rows:
        return Lag("few rows", weighed.against_rows())
    equal = fmean(report.degenerate for report in reports) if reports else 0.0
    if equal >= EQUAL:
        return Lag("uninformative", f"{weighed.against_rows()}; {percent(equal)} of its groups had equal rewards")
    return Lag("rule", weighed.against_rows())


def unasked(summary: RunSummary) -> list[str]:
    """Return the clients that have rows, and were asked in no round."""
    missed = summary.times_quarantined()
    asked = {client for client in summary.clients if summary.reports[client] or missed[client]}
    return [data.client for data in summary.data if data.rows != 0 and data.client not in asked]


def _rows(summary: RunSummary) -> Mapping[str, int]:
    """Return every client's training rows where they end."""
    told = {data.client: data.rows for data in summary.data}
    for client, reports in summary.reports.items():
        last: Report | None = reports[max(reports)] if reports else None
        told.setdefault(client, last.rows if last else None)
    return {client: rows for client, rows in told.items() if rows}
