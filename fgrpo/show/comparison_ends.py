"""Which of two runs ends with the higher accuracy, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fgrpo.records import Evaluation
from fgrpo.show.changes import Change, accuracy_change, mean_change
from fgrpo.show.comparison import Compared
from fgrpo.show.summary import RunSummary
from fgrpo.show.tables import TextTable
from fgrpo.show.text import counted

_WIDTH = 1.96  # standard errors on either side: 95%


@dataclass(frozen=True)
class Ending:
    """A run's final mean accuracy against the first one's, over the clients that both evaluated after training.

    Attributes:
        change: from the first one's to its own; None without such a client. Prompts are binomial samples, and different
            ones in the two runs: where they are the same, the interval is rather too wide.
        clients, prompts: how many it is over; prompts of this run.
        rounds: after which the first one and this one were evaluated.
    """

    run: str
    change: Change | None
    clients: int
    prompts: int
    rounds: tuple[int, int]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The difference's 95% interval."""
        if self.change is None:
            return None
        half = _WIDTH * self.change.error
        return self.change.difference - half, self.change.difference + half

    @property
    def outcome(self) -> str:
        if self.interval is None:
            return "not decided: no client was evaluated after training in both"
        low, high = self.interval
        if low <= 0 <= high:
            return "not decided"
        return "ends higher" if low > 0 else "ends lower"

    @property
    def difference(self) -> str:
        """The difference with its interval, in points."""
        if self.change is None or self.interval is None:
            return "-"
        low, high = (100 * bound for bound in self.interval)
        return f"{100 * self.change.difference:+.1f} points [{low:+.1f}, {high:+.1f}]"

    @property
    def measured(self) -> str:
        """What the difference is measured on."""
        first, own = self.rounds
        when = f"round {own}" if own == first else f"rounds {first} and {own}"
        return f"{counted(self.clients, 'client')}, {counted(self.prompts, 'prompt')}, after {when}"


def endings(runs: Sequence[Compared]) -> list[Ending]:
    """Return each further run against the first."""
    return [_ending(runs[0], run) for run in runs[1:]]


def endings_table(runs: Sequence[Compared]) -> TextTable:
    """Return the same, a row for each."""
    rows = [(ending.run, ending.difference, ending.measured, ending.outcome) for ending in endings(runs)]
    return TextTable(
        f"Final mean accuracy against {runs[0].name}, with the difference's 95% interval",
        ("run", "difference", "over", "outcome"),
        tuple(rows),
        numbers_from=4,
        note="of one run each: another seed may differ by more; `fgrpo sweep` compares over seeds" if rows else "",
    )


def _ending(first: Compared, other: Compared) -> Ending:
    ends = [_last(run.summary) for run in (first, other)]
    both = [client for client in ends[0] if client in ends[1]]
    change = mean_change([accuracy_change(ends[0][client], ends[1][client]) for client in both])
    prompts = sum(ends[1][client].prompts for client in both)
    rounds = (first.summary.evaluated_after, other.summary.evaluated_after)
    return Ending(other.name, change, len(both), prompts, rounds)


def _last(summary: RunSummary) -> dict[str, Evaluation]:
    """Return every client's last evaluation since training began."""
    return {client: rounds[max(rounds)] for client, rounds in summary.evaluations.items() if max(rounds, default=0)}
