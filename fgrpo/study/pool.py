"""Cells over processes: each imports the libraries once and plays one cell after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from fgrpo.errors import FgrpoError
from fgrpo.processes import forking_context, last_words, serve_only
from fgrpo.quiet import be_quiet
from fgrpo.study.agenda import Agenda, Watcher
from fgrpo.study.plan import Cell

Play = Callable[[Cell, Callable[[int], None]], None]  # a cell, and who to tell how many turns are over


@dataclass(frozen=True)
class _Turns:
    number: int


@dataclass(frozen=True)
class _Ended:
    reason: str | None


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    line: Connection
    cell: Cell | None = None


def play_all(agenda: Agenda, play: Play, jobs: int, watcher: Watcher, preload: Sequence[str] = ()) -> None:
    """Play an agenda to its end. A cell that fails is noted and ends no other; whatever ends this ends its processes.

    Args:
        play: something that can be pickled; what it raises is the reason of a failure.
        jobs: processes; 0 plays in this one.
        preload: modules that the processes are forked with.
    """
    if jobs == 0:
        _play_here(agenda, play, watcher)
        return
    pool = _Pool(play, preload)
    try:
        pool.run(agenda, jobs, watcher)
    finally:
        pool.close()


def _play_here(agenda: Agenda, play: Play, watcher: Watcher) -> None:
    while (cell := agenda.take()) is not None:
        watcher.begun(cell)
        reason = _reason(play, cell, lambda turns, at=cell: watcher.advanced(at, turns))  # type: ignore[misc]
        agenda.close(cell, reason)
        watcher.ended(cell, reason)


class _Pool:
    def __init__(self, play: Play, preload: Sequence[str]) -> None:
        self._play = play
        self._workers: list[_Worker] = []
        self._context = forking_context(preload)

    def run(self, agenda: Agenda, jobs: int, watcher: Watcher) -> None:
        while True:
            idle = [worker for worker in self._workers if worker.cell is None]
            while idle or len(self._workers) < jobs:
                if (cell := agenda.take()) is None:
                    break
                worker = idle.pop() if idle else self._hire()
                worker.cell = cell
                watcher.begun(cell)
                with suppress(OSError):  # if it has died, its line says so next
                    worker.line.send(cell)
            if all(worker.cell is None for worker in self._workers):
                return
            for worker, message in self._news():
                assert worker.cell is not None
                if isinstance(message, _Turns):
                    watcher.advanced(worker.cell, message.number)
                    continue
                cell, worker.cell = worker.cell, None
                agenda.close(cell, message.reason)
                watcher.ended(cell, message.reason)

    def close(self) -> None:
        """End the processes, whatever they are doing: whole rounds are on disk."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.line.close()
        self._workers.clear()

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._play), name="fgrpo study")
        process.start()
        theirs.close()  # so that ours ends when the process does
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]

    def _news(self) -> list[tuple[_Worker, _Turns | _Ended]]:
        """Wait for messages of workers that are at work."""
        busy = {worker.line: worker for worker in self._workers if worker.cell is not None}
        news: list[tuple[_Worker, _Turns | _Ended]] = []
        for line in connections.wait(list(busy)):
            worker = busy[line]  # type: ignore[index]
            try:
                message = worker.line.recv()
            except (EOFError, OSError):
                self._workers.remove(worker)
                message = _Ended(f"its process {last_words(worker.process)}")
                worker.line.close()
            news.append((worker, message))
        return news


def _serve(line: Connection, play: Play) -> None:
    """Play every cell that comes through the line."""
    serve_only()
    be_quiet()
    while True:
        try:
            cell = line.recv()
        except EOFError:
            return
        line.send(_Ended(_reason(play, cell, lambda turns: line.send(_Turns(turns)))))


def _reason(play: Play, cell: Cell, announce: Callable[[int], None]) -> str | None:
    try:
        play(cell, announce)
    except FgrpoError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
