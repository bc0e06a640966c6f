"""What is to be played, in which order: a pair's cells are known once its tuning is done."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import chain, count
from typing import Protocol

from fgrpo.study.plan import Cell, Pair
from fgrpo.study.spec import Study
from fgrpo.study.tuning import Find, finalists


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
        self._unchosen: dict[int, list[Cell]] = {}  # by pair that waits, what it may have to play after that
        self._number = count()
        for at, pair in enumerate(pairs):
            self._tuning[at] = {cell for cell in pair.tuning() if find(cell) is None}
            for cell in pair.tuning():
                if cell in self._tuning[at]:
                    self._push(at, cell)
            if self._tuning[at]:
                self._unchosen[at] = self._missing(pair, [*finalists(pair, study, find), *pair.configs])
            else:
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
        return [*(entry[-1] for entry in self._waiting), *chain.from_iterable(self._unchosen.values())]

    def _report(self, at: int) -> None:
        """Put a pair's reported cells on the agenda; none if every value failed, as each failure has been told."""
        self._unchosen.pop(at, None)
        for cell in self._missing(self._pairs[at], finalists(self._pairs[at], self._study, self._find)):
            self._push(at, cell)

    def _missing(self, pair: Pair, values: Sequence[object]) -> list[Cell]:
        """Return the reported cells that are not finished, at the first of the values, as many as are reported."""
        number = self._study.tune.finalists_of(pair.arm) if self._study.tune else 1
        first = list(dict.fromkeys(values))[:number]
        return [cell for value in first for cell in pair.reported(value, self._study.seeds) if self._find(cell) is None]

    def _push(self, at: int, cell: Cell) -> None:
        seed = 0 if cell.tuning else self._study.seeds.index(cell.seed)
        heapq.heappush(self._waiting, (not cell.tuning, seed, at, next(self._number), cell))
