"""What is to be played, in which order: a pair's cells are known once its tuning is done."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from statistics import fmean
from typing import Protocol

from fgrpo.study.measures import Choice, Curve, choose
from fgrpo.study.plan import Cell, Pair
from fgrpo.study.result import Result
from fgrpo.study.spec import Study

Find = Callable[[Cell], Result | None]  # what a cell came to; None if it is not finished


class Watcher(Protocol):
    """Who watches the cells being played."""

    def begun(self, cell: Cell) -> None: ...

    def advanced(self, cell: Cell, turns: int) -> None:
        """So many more clients' turns of a cell are over."""
        ...

    def ended(self, cell: Cell, reason: str | None) -> None:
        """A cell is finished, or has failed for a reason."""
        ...


class Agenda:
    """The cells that are not finished, those that others wait for first; then seed by seed, so that an early end leaves
    whole comparisons.

    Attributes:
        failures: why cells failed, in this process.
    """

    def __init__(self, study: Study, pairs: Sequence[Pair], find: Find) -> None:
        self.failures: dict[Cell, str] = {}
        self._study, self._find = study, find
        self._order = {(pair.scenario.name, pair.arm.name): at for at, pair in enumerate(pairs)}
        self._pairs = list(pairs)
        self._waiting: list[tuple[bool, int, int, int, Cell]] = []
        self._tuning: dict[int, set[Cell]] = {}  # by pair, the cells whose end its choice waits for
        self._number = count()
        for at, pair in enumerate(pairs):
            self._tuning[at] = {cell for cell in pair.tuning() if find(cell) is None}
            for cell in pair.tuning():
                if cell in self._tuning[at]:
                    self._push(at, cell)
            if not self._tuning[at]:
                self._report(at)

    def take(self) -> Cell | None:
        """Return the next cell to play; None if there is none, or none before another has ended."""
        return heapq.heappop(self._waiting)[-1] if self._waiting else None

    def close(self, cell: Cell, reason: str | None) -> None:
        """Note that a cell has been played, or why it could not be."""
        if reason is not None:
            self.failures[cell] = reason
        at = self._order[cell.scenario, cell.arm]
        if cell.tuning:
            self._tuning[at].discard(cell)
            if not self._tuning[at]:
                self._report(at)

    def left(self) -> list[Cell]:
        """Return the cells that nobody has taken yet, with those of pairs whose value is still to be chosen."""
        unchosen = [
            cell
            for at, pair in enumerate(self._pairs)
            if self._tuning[at]
            for cell in pair.reported(next(iter(pair.configs)), self._study.seeds)
        ]
        return [*(entry[-1] for entry in self._waiting), *unchosen]

    def _report(self, at: int) -> None:
        """Put a pair's reported cells on the agenda."""
        choice = chosen(self._pairs[at], self._study, self._find)
        if choice is None:
            return  # every value failed, and each failure has been told
        for cell in self._pairs[at].reported(choice.value, self._study.seeds):
            if self._find(cell) is None:
                self._push(at, cell)

    def _push(self, at: int, cell: Cell) -> None:
        seed = 0 if cell.tuning else self._study.seeds.index(cell.seed)
        heapq.heappush(self._waiting, (not cell.tuning, seed, at, next(self._number), cell))


def chosen(pair: Pair, study: Study, find: Find) -> Choice | None:
    """Return a pair's value: the best of those that all tuning seeds have been played with; None if there is none."""
    if not pair.tuning_seeds:
        return Choice(None, {}, False)
    finals: dict[object, list[float | None]] = {}
    for cell in pair.tuning():
        result = find(cell)
        accuracy = None if result is None else Curve.of(result.accuracy, pair.scenario.measure).final(study.last)
        finals.setdefault(cell.value, []).append(accuracy)
    return choose({value: None if None in known else fmean(known) for value, known in finals.items()})  # type: ignore[arg-type]


def played(pair: Pair, study: Study, find: Find) -> tuple[Choice | None, Mapping[int, Result]]:
    """Return a pair's choice and, by seed, the results that there are."""
    choice = chosen(pair, study, find)
    cells = [] if choice is None else pair.reported(choice.value, study.seeds)
    return choice, {cell.seed: result for cell in cells if (result := find(cell)) is not None}
