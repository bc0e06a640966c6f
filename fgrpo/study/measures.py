"""What is measured: pure functions of accuracy by round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import fmean, pstdev

from fgrpo.errors import ConfigError


@dataclass(frozen=True)
class Curve:
    """Held-out accuracy of one run at the rounds at which it was measured.

    Attributes:
        mean: over the clients that count.
        clients: of each of them; NaN where it was not measured.
        completions: sampled until then by all clients, whether they count or not; empty where that is not known.
    """

    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    clients: Mapping[str, tuple[float, ...]]
    completions: tuple[int, ...] = ()

    @staticmethod
    def of(
        accuracy: Mapping[str, Mapping[int, float]],
        measure: Sequence[str] = ("*",),
        completions: Mapping[int, int] | None = None,
    ) -> Curve:
        """Return the curve of the clients whose names match one of the patterns `measure`.

        Args:
            completions: sampled in each round; None or empty where that is not known.

        Raises:
            ConfigError: there is no such client, or it was never measured.
        """
        counted = {c: a for c, a in accuracy.items() if any(fnmatchcase(c, pattern) for pattern in measure)}
        rounds = tuple(sorted({number for measured in counted.values() for number in measured}))
        if not rounds:
            called, there = " or ".join(measure), ", ".join(accuracy)
            raise ConfigError(f"measure: no client called {called} was evaluated, only {there}")

        mean = tuple(fmean(m[number] for m in counted.values() if number in m) for number in rounds)
        clients = {c: tuple(m.get(n, math.nan) for n in rounds) for c, m in counted.items()}
        until = [sum(number for at, number in (completions or {}).items() if at <= n) for n in rounds]
        return Curve(rounds, mean, clients, tuple(until) if completions else ())

    def final(self, last: int) -> float:
        """Return the mean accuracy over the last evaluations, fewer if there are fewer after training began."""
        return fmean(self.mean[-self._last(last) :])

    def worst(self, last: int) -> float:
        """Return the lowest of the clients' mean accuracies over the last evaluations."""
        return min(self.finals(last).values())

    def finals(self, last: int) -> dict[str, float]:
        """Return the clients' mean accuracies over the last evaluations, of those that were measured then."""
        tails = {c: [a for a in curve[-self._last(last) :] if not math.isnan(a)] for c, curve in self.clients.items()}
        return {client: fmean(tail) for client, tail in tails.items() if tail}

    def deviation(self, last: int) -> float:
        """Return the standard deviation of the mean accuracy over the last evaluations: how restless the end is."""
        return pstdev(self.mean[-self._last(last) :])

    def _last(self, last: int) -> int:
        return max(1, min(last, len(self.rounds) - 1))


def cost_of(target: float, costs: Sequence[float], values: Sequence[float]) -> float:
    """Return the cost at which a curve first reaches a value, on straight lines between evaluations; infinite if never.

    Args:
        costs: of each evaluation, rising: the rounds until then, or the completions.
        values: what was measured.
    """
    for at, value in enumerate(values):
        if value >= target:
            if at == 0:
                return float(costs[0])
            before = values[at - 1]
            part = (target - before) / (value - before)
            return costs[at - 1] + part * (costs[at] - costs[at - 1])
    return math.inf
