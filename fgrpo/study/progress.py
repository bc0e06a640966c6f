"""How far a study is: a line for every cell that ends, and what is being played: live in a terminal, else in lines."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fgrpo.show.text import duration, printable
from fgrpo.study.agenda import Agenda
from fgrpo.study.plan import Cell

_QUIET_S = 5.0  # a pipe hears of cells at work after so long without a line


class StudyProgress:
    """A watcher that shows a study; a context manager, as the live display must end whatever happens.

    Where there is no live display, cells that begin and rounds that end are lines too, but none within five seconds of
    another one: a long study's log should not be flooded. Until a first cell has ended, each one that begins is a line.

    Args:
        told: how a finished cell came out, in a few words.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        agenda: Agenda,
        told: Callable[[Cell], str],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # FORCE_COLOR makes rich take a pipe for a terminal; a log file should stay a log file all the same.
        self._console = console or Console(force_terminal=None if sys.stdout.isatty() else False)
        self._agenda, self._told, self._clock = agenda, told, clock
        self._start = clock()
        self._begun: dict[Cell, float] = {}  # cells at work, and when they began
        self._turns: dict[Cell, int] = {}  # of cells at work, turns that are over
        self._said = -math.inf  # when the last line was
        self._done = self._ended = 0  # turns and cells that have ended
        self._live = Live(self, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> StudyProgress:
        if self._console.is_interactive:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()  # does nothing where it was not started

    def begun(self, cell: Cell) -> None:
        self._begun[cell] = self._clock()
        self._turns[cell] = 0
        if not self._ended or self._is_quiet():
            self._tell(cell, "begun")

    def advanced(self, cell: Cell, turns: int) -> None:
        self._turns[cell] += turns
        if self._turns[cell] < cell.work and self._is_quiet():
            left = self._left_text()
            self._tell(cell, f"{self._turns[cell]} of {cell.work} clients' turns{left and f', {left}'}")

    def ended(self, cell: Cell, reason: str | None) -> None:
        took = self._clock() - self._begun.pop(cell)
        self._done += self._turns.pop(cell)
        self._ended += 1
        total = self._ended + len(self._begun) + len(self._agenda.left())
        head = f"{self._ended:>{len(str(total))}}/{total}  {cell.name}"
        if reason is not None:
            self._print(Text(printable(f"{head}: failed: {reason}", self._console.encoding), style="yellow"))
            return
        line = f"{head}  {self._told(cell)}  {duration(took)}  {self._left_text()}"
        self._print(Text(printable(line, self._console.encoding)))

    def left(self) -> float | None:
        """Return the seconds that the rest will take at the pace so far; None before anything is over."""
        over = self._done + sum(self._turns.values())
        if not over:
            return None
        at_work = sum(max(0, cell.work - self._turns[cell]) for cell in self._begun)
        rest = at_work + sum(cell.work for cell in self._agenda.left())
        return rest * (self._clock() - self._start) / over

    def _left_text(self) -> str:
        left = self.left()
        return "" if left is None else f"about {duration(left)} left"

    def _is_quiet(self) -> bool:
        return self._clock() - self._said >= _QUIET_S

    def _tell(self, cell: Cell, what: str) -> None:
        """Say how a cell at work is doing, where no live display does."""
        if not self._console.is_interactive:
            self._print(Text(printable(f"  {cell.name}: {what}", self._console.encoding)))

    def _print(self, what: Text) -> None:
        self._said = self._clock()
        self._console.print(what, soft_wrap=True, highlight=False)

    def __rich__(self) -> Group:
        total = self._ended + len(self._begun) + len(self._agenda.left())
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"{self._ended} of {total} cells", style="bold"),
            ProgressBar(max(1, total), self._ended, width=28),
            Text(f"{duration(self._clock() - self._start)} elapsed"),
            Text(self._left_text(), style="cyan"),
        )
        at_work = list(self._begun)
        now = [f"{cell.name}: {self._turns.get(cell, 0)} of {cell.work} clients' turns" for cell in at_work]
        return Group(head, *(Text(printable(line, self._console.encoding), style="dim") for line in now))
