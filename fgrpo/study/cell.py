"""Playing one cell in its folder, from where it was broken off if it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from fgrpo.config import Config
from fgrpo.engines.base import Engine
from fgrpo.engines.choice import open_engine
from fgrpo.errors import RunError
from fgrpo.federation import play
from fgrpo.importing import find_rewards
from fgrpo.records import TEST_SET, Record, RoundSummary
from fgrpo.run_folder import RunFolder
from fgrpo.settings import to_yaml
from fgrpo.study.baselines import Alone, Pooled, by_itself
from fgrpo.study.plan import Cell
from fgrpo.study.result import OTHER_DEFAULT, Result, difference


def play_cell(cell: Cell, path: Path, keep: bool, announce: Callable[[int], None]) -> None:
    """Play a cell to its end, and leave its result, configuration and records in its folder.

    Args:
        keep: leave the state and the payloads of the last rounds too.
        announce: called after every round with the number of clients' turns in it.
    """
    find_rewards(cell.config)
    turns = 1 if cell.baseline == "local" else cell.work // cell.config.rounds
    with _runs(cell, path) as runs:
        folders = [_play(engine, config, folder, lambda: announce(turns)) for engine, config, folder in runs]
    records = [record for folder in folders for record in folder.records()]
    if not keep:
        for folder in folders:
            _prune(folder)
    Result.of(records, cell.config).write(path)


Run = tuple[Engine, Config, Path]


@contextmanager
def _runs(cell: Cell, path: Path) -> Iterator[Iterator[Run]]:
    """Give the runs that a cell consists of: one, or one for each client."""
    if cell.baseline is None:
        with open_engine(cell.config) as engine:
            yield iter([(engine, cell.config, path)])
        return
    from fgrpo.engines.workplace import Workplace

    before = torch.get_num_threads()
    torch.set_num_threads(cell.config.engine.threads or 1)
    try:
        workplace, config = Workplace.open(cell.config), by_itself(cell.config)
        if cell.baseline == "centralised":
            yield iter([(Pooled(workplace), config, path)])
        else:
            start_P = Alone.start(workplace)
            yield (
                (Alone(workplace, client, start_P), config, path / "clients" / client)
                for client in workplace.owners.evaluated
                if client != TEST_SET
            )
    finally:
        torch.set_num_threads(before)


def _play(engine: Engine, config: Config, path: Path, announce: Callable[[], None]) -> RunFolder:
    folder = RunFolder(path)
    text = to_yaml(config, path)
    if folder.config_file.is_file():
        _check_same(text, folder)
        folder.reopen(text, changes={})
    else:
        folder = RunFolder.create(path, text)
    state = folder.load() if folder.rounds() else folder.initial(engine.initial_parameters())
    with folder.log():
        play(state, engine, config, folder, _Announcer(announce))
    return folder


def _check_same(text: str, folder: RunFolder) -> None:
    """Raise RunError if a run that was broken off had another configuration."""
    before = yaml.safe_load(folder.config_file.read_text(encoding="utf-8"))
    if different := difference(before, yaml.safe_load(text)):
        raise RunError(f"{folder.path} holds a run with {different}; {OTHER_DEFAULT}")


def _prune(folder: RunFolder) -> None:
    """Delete the large files: what the rounds measured stays."""
    for file in folder.path.glob("rounds/*/state.*"):
        file.unlink()
    for payloads in [*folder.path.glob("rounds/*/payloads"), folder.path / "residuals"]:
        shutil.rmtree(payloads, ignore_errors=True)


class _Announcer:
    """An observer that tells when a round is over."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce = announce

    def stage(self, who: str, stage: str) -> None:
        pass

    def record(self, record: Record) -> None:
        if isinstance(record, RoundSummary):
            self._announce()
