"""FGRPO's own loop by its public interface, as `fgrpo train` runs it but without the display."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fgrpo.config import Config
from fgrpo.experiment import train
from fgrpo.records import Evaluation, Record, Report, RoundSummary
from fgrpo.run_folder import RunFolder
from rivals.record import Played, Round, Task, Work


def play(task: Task) -> Played:
    with tempfile.TemporaryDirectory() as folder:
        clock = _Clock()
        train(replace(task.config(), output_dir=str(Path(folder) / "run")), clock.observe)
    return clock.played


class _Clock:
    """An observer that notes when the stages of a round begin, and what its records say."""

    def __init__(self) -> None:
        self.played = Played()
        self._began: dict[str, float] = {}
        self._work: list[Work] = []
        self._groups = 0

    @contextmanager
    def observe(self, config: Config, folder: RunFolder, clients: Sequence[str]) -> Iterator[_Clock]:
        self._groups = config.train.local_steps * config.rollout.prompts_per_step
        yield self

    def stage(self, who: str, stage: str) -> None:
        if who != "server":
            return
        if stage == "clients":  # a round begins
            self._began.clear()
        self._began[stage] = time.monotonic()
        if self.played.ready is None:  # the evaluation before the first round begins
            self.played.ready = self._began[stage]

    def record(self, record: Record) -> None:
        if isinstance(record, Report):
            self._work.append(self._of(record))
        elif isinstance(record, RoundSummary):
            self.played.rounds.append(self._round(record))
            self._work.clear()
        elif isinstance(record, Evaluation):
            accuracy = self.played.before if record.round == 0 else self.played.after
            accuracy[record.client] = record.accuracy

    def _round(self, summary: RoundSummary) -> Round:
        """The round that is on disk as of now: its stages and its saving count, an evaluation between them does not."""
        start, save = self._began["clients"], self._began["save"]
        end = min(save, self._began.get("evaluate", save))
        saving = time.monotonic() - save
        return Round(
            start=start,
            end=end,
            seconds=end - start + saving,
            stages={**summary.seconds, "save": saving},
            uplink_bytes=sum(summary.uplink_bytes.values()),
            work=Work.total(self._work),
        )

    def _of(self, report: Report) -> Work:
        return Work(
            sequences=report.sequences,
            tokens=report.tokens,
            groups=self._groups,
            informative=self._groups - round(report.degenerate * self._groups),
            rollout_s=report.seconds["rollout"],
            reward_s=report.seconds["reward"],
            train_s=report.seconds["train"],
        )
