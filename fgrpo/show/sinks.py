"""Who draws a run's curves: TensorBoard, and wandb or trackio, which have the same interface."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict
from importlib import import_module
from types import TracebackType
from typing import Any

from fgrpo.config import Config
from fgrpo.errors import ConfigError, RunError
from fgrpo.importing import check_report_to
from fgrpo.run_folder import RunFolder
from fgrpo.show.curves import CurveWriter, Sink


def curve_writer(config: Config, folder: RunFolder) -> CurveWriter:
    """Return the observer that hands the run's curves to everyone under `report_to`.

    Raises:
        ConfigError: one of them is not installed.
    """
    check_report_to(config)
    sinks: list[Sink] = [
        TensorBoard(folder) if name == "tensorboard" else Tracker(name, config, folder) for name in config.report_to
    ]
    return CurveWriter(sinks, list(folder.records()))


class TensorBoard:
    """Event files under `RUN/tensorboard/`; the step is the round.

    The rounds that the folder already holds are written again, in place of what an earlier process wrote of them: so
    the curves of a resumed run are whole, however that process ended.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __enter__(self) -> TensorBoard:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = 0 if self._folder.rounds() else None
        self._writer = SummaryWriter(str(self._folder.path / "tensorboard"), purge_step=purge_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, round_number: int, values: dict[str, float], texts: dict[str, str]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, round_number)
        for tag, text in texts.items():
            self._writer.add_text(tag, text, round_number)
        self._writer.flush()


class Tracker:
    """A run at wandb, or at trackio. Its project is `WANDB_PROJECT` or `TRACKIO_PROJECT`, or else `fgrpo`.

    `RUN/wandb.json` (`RUN/trackio.json`) says which run it is there and how many rounds it has, so that a resumed run
    goes on as the same one.

    Raises:
        ConfigError: the library cannot be imported.
    """

    def __init__(self, name: str, config: Config, folder: RunFolder) -> None:
        try:
            self._library: Any = import_module(name)
        except ImportError as error:
            raise ConfigError(f"report_to: {name} is installed but cannot be imported: {error}") from error
        self._name, self._config, self._folder = name, config, folder
        self._file = folder.path / f"{name}.json"

    def __enter__(self) -> Tracker:
        known = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._id, self._next = known.get("id", uuid.uuid4().hex[:12]), known.get("next_round", 0)
        run, project = self._folder.path.resolve().name, os.environ.get(f"{self._name.upper()}_PROJECT", "fgrpo")
        options: dict[str, Any] = {"project": project, "config": asdict(self._config), "resume": "allow"}
        if self._name == "wandb":
            options |= {"name": run, "id": self._id, "dir": str(self._folder.path)}
        else:  # it has no ids: whoever has the name is resumed
            options |= {"name": f"{run}-{self._id}", "embed": False}
        try:
            self._library.init(**options)
        except Exception as error:  # whatever it raises without a network, an account or a place to write
            raise RunError(f"report_to: {self._name} cannot start a run: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._library.finish()

    def write(self, round_number: int, values: dict[str, float], texts: dict[str, str]) -> None:
        if round_number < self._next:
            return
        table = {"samples": self._library.Table(columns=["client", "samples"], data=list(map(list, texts.items())))}
        self._library.log({**values, **(table if texts else {})}, step=round_number)
        self._next = round_number + 1
        self._file.write_text(json.dumps({"id": self._id, "next_round": self._next}))
