"""What a verdict stands on: how a run's measures changed, and the words for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from statistics import fmean

from fgrpo.records import Report
from fgrpo.show.changes import Change, accuracy_change, mean_change, trend
from fgrpo.show.standing import Lag, Weight, lags, weights
from fgrpo.show.summary import RunSummary
from fgrpo.show.text import NAMED, counted, number, percent, points


class Evidence:
    """A run's measures as changes. Reports' measures compare the last third of the rounds with the first."""

    def __init__(self, summary: RunSummary) -> None:
        self.summary = summary
        self.rounds = [round_.round for round_ in summary.rounds]
        self.late = self.rounds[-max(1, len(self.rounds) // 3) :]

    @cached_property
    def accuracy(self) -> dict[str, Change]:
        """How each client's accuracy changed since before training."""
        measured = {c: rounds for c, rounds in self.summary.evaluations.items() if 0 in rounds and max(rounds)}
        return {client: accuracy_change(rounds[0], rounds[max(rounds)]) for client, rounds in measured.items()}

    @cached_property
    def mean_accuracy(self) -> Change | None:
        return mean_change(list(self.accuracy.values()))

    @cached_property
    def since_best(self) -> tuple[int, Change] | None:
        """The round after which mean accuracy was best, and how it has changed since."""
        measured = list(self.summary.evaluations.values())
        last = self.summary.evaluated_after
        since = {
            n: change
            for n in {n for rounds in measured for n in rounds} - {last}
            if (change := mean_change([accuracy_change(m[n], m[last]) for m in measured if n in m and last in m]))
        }
        return max(since.items(), key=lambda item: item[1].before, default=None)

    @cached_property
    def rewards(self) -> dict[str, Change]:
        """How each client's mean reward changed, in its own scale."""
        series = {c: [r.reward_mean for _, r in sorted(rs.items())] for c, rs in self.summary.reports.items()}
        return {client: change for client, values in series.items() if (change := trend(values))}

    @cached_property
    def steps(self) -> Change | None:
        """How the length of the server's step changed."""
        return trend([round_.update_norm for round_ in self.summary.rounds if round_.weights])

    def mean_over_clients(self, measure: Callable[[Report], float | None]) -> Change | None:
        """Return how a measure's mean over the clients of a round changed."""
        per_round = [[v for report in self.reports(n) if (v := measure(report)) is not None] for n in self.rounds]
        return trend([fmean(values) for values in per_round if values])

    @cached_property
    def learned(self) -> bool:
        """Whether accuracy rose and stayed up; where it was not measured, whether most clients' rewards rose."""
        if self.mean_accuracy is not None:
            return self.mean_accuracy.up and not (self.since_best and self.since_best[1].down)
        return sum(change.up for change in self.rewards.values()) > len(self.rewards) / 2

    def reports(self, round_number: int) -> list[Report]:
        return [reports[round_number] for reports in self.summary.reports.values() if round_number in reports]

    def equal_groups(self, client: str | None = None, rounds: Sequence[int] | None = None) -> float | None:
        """Return the share of groups with equal rewards, of one client or all, in some rounds or the last third."""
        rounds = self.late if rounds is None else rounds
        found = [r.degenerate for n in rounds for r in self.reports(n) if client in (None, r.client)]
        return fmean(found) if found else None

    def not_finite(self) -> Iterator[str]:
        """Yield where training gave no number."""
        for n in self.rounds:
            for report in self.reports(n):
                bad = [name for name, value in report.metrics.items() if not math.isfinite(value)]
                if bad:
                    yield f"round {n}, {report.client}: {', '.join(bad)}"
        for round_ in self.summary.rounds:
            for client, reason in round_.quarantined.items():
                if any(word in reason for word in ("not finite", "diverged", " nan", " inf")):
                    yield f"round {round_.round}, {client}: {reason}"

    @cached_property
    def lags(self) -> dict[str, Lag]:
        """Why clients hardly take part: of those that do not."""
        return lags(self.summary, self.weights)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """What clients weighed, against their shares of rows."""
        return weights(self.summary)

    @cached_property
    def since_first(self) -> dict[str, Change]:
        """How each client's mean reward changed from the first round to the last third, in its own scale.

        Its error is that of means over prompt groups, whose completions are alike.
        """
        found = {}
        for client, reports in self.summary.reports.items():
            late = [reports[n] for n in self.late if n in reports and n != min(reports)]
            if late:
                first = reports[min(reports)]
                variance = _variance(first) + sum(map(_variance, late)) / len(late) ** 2
                found[client] = Change(first.reward_mean, fmean(r.reward_mean for r in late), math.sqrt(variance))
        return found

    @cached_property
    def rewards_fell(self) -> bool:
        """Whether rewards are clearly lower than in the first round, all clients taken together, each in its unit."""
        units = {c: self.summary.reports[c][min(self.summary.reports[c])].reward_std for c in self.since_first}
        in_units = [
            Change(change.before / units[c], change.after / units[c], change.error / units[c])
            for c, change in self.since_first.items()
            if units[c] > 0
        ]
        change = mean_change(in_units)
        return change is not None and change.down and not any(change.up for change in self.since_first.values())

    @cached_property
    def constant_rewards(self) -> set[float]:
        """The clients' rewards, if every completion of a client got the same in all rounds; empty otherwise."""
        of_clients = [{r.reward_mean for r in reports.values()} for reports in self.summary.reports.values() if reports]
        constant = all(len(rewards) == 1 for rewards in of_clients) and self.equal_groups(rounds=self.rounds) == 1.0
        return set().union(*of_clients) if constant else set()

    @property
    def shaped(self) -> bool:
        """Whether rewards are made of several functions' values."""
        return any(name.startswith("reward/") for n in self.rounds for r in self.reports(n) for name in r.metrics)

    @property
    def sampled(self) -> bool:
        """Whether the run kept samples to read."""
        measured = [*self.summary.evaluations.values(), self.summary.test_set]
        return any(evaluation.samples for rounds in measured for evaluation in rounds.values())

    @property
    def prompts_in_words(self) -> str:
        """Return how many held-out prompts accuracy is a mean over, and what change they can tell at the least."""
        if self.mean_accuracy is None:
            return ""
        counts = sorted({r.prompts for c in self.accuracy for r in self.summary.evaluations[c].values()})
        prompts = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return (
            f"{prompts} held-out prompts a client tell differences of {100 * self.least_change:.0f} points at the least"
        )

    @property
    def least_change(self) -> float:
        """The change of mean accuracy that would be clear; 0 where it was not measured."""
        return self.mean_accuracy.sure * self.mean_accuracy.error if self.mean_accuracy else 0.0

    def accuracy_in_words(self) -> list[str]:
        """Return how accuracy changed, over the clients and on the run's own test set, where they were measured."""
        words = []
        if self.mean_accuracy:
            ups = sum(change.up for change in self.accuracy.values())
            among = f", clearly up at {ups} of {len(self.accuracy)} clients" if len(self.accuracy) > 1 else ""
            words.append(f"mean held-out accuracy {percents(self.mean_accuracy)}{among}")
        unscored = sum(e.unscored for rounds in self.summary.evaluations.values() for e in rounds.values())
        if unscored:
            words.append(f"no reward could be told for {counted(unscored, 'held-out answer')}, which count 0")
        measured = self.summary.test_set
        if 0 in measured and max(measured):
            words.append(f"test set {percents(accuracy_change(measured[0], measured[max(measured)]))}")
        return words

    def reward_in_words(self, client: str) -> str:
        return f"{client} reward {arrow(self.rewards[client])}"

    def since_first_in_words(self) -> str:
        return listed(f"{client} reward {arrow(change)}" for client, change in self.since_first.items())


def _variance(report: Report) -> float:
    """Return the variance of a round's mean reward; where groups were not counted, as if completions were single."""
    return report.reward_std**2 / max(1, report.groups or report.sequences)


def arrow(change: Change) -> str:
    return f"{number(change.before)} → {number(change.after)}"


def percents(change: Change) -> str:
    """Return an accuracy's change with two standard errors."""
    gained = points(change.before, change.after)
    return f"{percent(change.before)} → {percent(change.after)} ({gained} ± {200 * change.error:.1f} points)"


def span(rounds: Sequence[int]) -> str:
    return f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]}"


def listed(parts: Iterable[str]) -> str:
    """Return the first parts in one text, and how many more there are."""
    parts = list(parts)
    more = len(parts) - NAMED
    return "; ".join([*parts[:NAMED], *([f"and {more} more"] if more > 0 else [])])
