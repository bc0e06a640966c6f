"""What an aggregation rule is, and the baselines that it may look at. Nothing here knows tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from fgrpo.records import ClientHistory, Report


class Rule(Protocol):
    """A pure function from reports and history to one weight per report, each at least 0, together 1."""

    def __call__(self, reports: Sequence[Report], history: Mapping[str, ClientHistory]) -> list[float]: ...


Counted = Literal["rows", "sequences", "tokens"]


def sizes(reports: Sequence[Report], by: Counted) -> list[int]:
    """Return every report's `n_k`; by sequences where a client of the round has no number of rows, for all alike."""
    if by == "tokens":
        return [report.tokens for report in reports]
    rows = [report.rows for report in reports if report.rows is not None]
    return rows if by == "rows" and len(rows) == len(reports) else [report.sequences for report in reports]


def normalised(shares: Sequence[float]) -> list[float]:
    """Return shares divided by their sum; equal weights if they sum to 0."""
    total = sum(shares)
    return [share / total for share in shares] if total > 0 else [1 / len(shares)] * len(shares)


def updated_history(
    history: Mapping[str, ClientHistory], reports: Sequence[Report], decay: float
) -> dict[str, ClientHistory]:
    """Return the history after a round: exponential moving averages that start at a client's first report.

    `baseline <- decay * baseline + (1 - decay) * reward_mean`, and the same for the deviation with `reward_std`.
    """
    updated = dict(history)
    for report in reports:
        old = history.get(report.client)
        if old is None:
            updated[report.client] = ClientHistory(report.reward_mean, report.reward_std, 1)
        else:
            updated[report.client] = ClientHistory(
                decay * old.baseline + (1 - decay) * report.reward_mean,
                decay * old.deviation + (1 - decay) * report.reward_std,
                old.rounds + 1,
            )
    return updated
