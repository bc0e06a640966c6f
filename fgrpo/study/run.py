"""A study from its file: plan the cells, play those that are not finished, and write what they show."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgrpo.errors import FgrpoError, RunError
from fgrpo.hub import hub_or_disk
from fgrpo.lock import held
from fgrpo.show.text import counted
from fgrpo.study.agenda import Agenda
from fgrpo.study.measures import Curve
from fgrpo.study.plan import Cell, pairs
from fgrpo.study.pool import play_all
from fgrpo.study.progress import StudyProgress
from fgrpo.study.result import OTHER_DEFAULT, Result
from fgrpo.study.spec import Study
from fgrpo.study.tuning import Find

if TYPE_CHECKING:
    from fgrpo.study.page import Report

_PRELOAD = ("fgrpo.study.cell", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


@dataclass(frozen=True)
class Player:
    """Plays a cell in its folder within a study's; goes to other processes."""

    root: Path
    keep: bool

    def __call__(self, cell: Cell, announce: Callable[[int], None]) -> None:
        from fgrpo.study.cell import play_cell  # here, as it brings torch and transformers

        try:
            play_cell(cell, self.root / cell.folder, self.keep, announce)
        except FgrpoError:
            raise
        except Exception as error:  # of the program, or of a user's reward
            log = self.root / "log.txt"
            with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{cell.name}\n{traceback.format_exc()}\n")
            (*_, last) = traceback.format_exception_only(error)
            raise RunError(f"{last.splitlines()[0]}; its traceback is in {log}") from None


def finder(root: Path) -> Find:
    """Return a function that gives the results of finished cells, each read once.

    It raises RunError for the result of another configuration: what is left to defaults is not in a folder's name.
    """
    known: dict[Cell, Result] = {}

    def find(cell: Cell) -> Result | None:
        if cell not in known:
            result = Result.read(root / cell.folder)
            if result is None:
                return None
            if different := result.differs(cell.config):
                raise RunError(f"{root / cell.folder} holds a run with {different}; {OTHER_DEFAULT}")
            known[cell] = result
        return known[cell]

    return find


def run_study(study: Study, jobs: int | None = None, play: bool = True) -> Report:
    """Play what is not finished of a study, and write and return its report.

    Args:
        jobs: processes; None is one for each core, 0 none but this one.
        play: or only write what is finished already.

    Raises:
        FgrpoError: the study cannot be used, or nothing of it is finished.
    """
    print(f"{study.title}: {study.counts}", flush=True)
    planned, root = pairs(study), study.output_dir
    find = finder(root)
    agenda = Agenda(study, planned, find)
    if play:
        _make_folder(study)
        with held(root):
            _play(study, agenda, find, jobs)
    from fgrpo.study.page import write_report  # here, as it brings matplotlib, and the first line should come at once

    return write_report(study, planned, find, agenda.failures)


def _play(study: Study, agenda: Agenda, find: Find, jobs: int | None) -> None:
    left = agenda.left()
    if not left:
        print(f"all cells are finished in {study.output_dir}")
        return
    jobs = min(_jobs(left) if jobs is None else jobs, len(left))
    print(f"{counted(len(left), 'cell')} to play in {study.output_dir}, {jobs or 1} at a time", flush=True)
    preload = [*_PRELOAD, *(["fgrpo.client.tasks.gym"] if any(_uses_gym(cell) for cell in left) else [])]
    measure = {scenario.name: scenario.measure for scenario in study.scenarios}

    def told(cell: Cell) -> str:
        result = find(cell)
        if result is None:
            return ""
        return f"{100 * Curve.of(result.accuracy, measure[cell.scenario]).final(study.last):.1f}%"

    with ExitStack() as stack:
        for config in {cell.config.model: cell.config for cell in left}.values():
            stack.enter_context(hub_or_disk(config))
        progress = stack.enter_context(StudyProgress(agenda, told))
        play_all(agenda, Player(study.output_dir, study.keep), jobs, progress, preload)


def _uses_gym(cell: Cell) -> bool:
    return any(task.reasoning_gym for client in cell.config.clients.values() for task in client.tasks)


def _make_folder(study: Study) -> None:
    """Make the study's folder, with what was asked."""
    root = study.output_dir
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / "study.yaml").write_text(study.text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"output_dir: {root} cannot be written: {error.strerror}") from None


def _jobs(cells: Sequence[Cell]) -> int:
    """Return how many cells to play at once: one on an accelerator, else one for each core."""
    from fgrpo.client.model import resolve_device  # here, as it brings torch

    if any(resolve_device(device).type != "cpu" for device in {cell.config.device for cell in cells}):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
