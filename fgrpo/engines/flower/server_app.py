"""The app on the server: a run as anywhere else, with the nodes for an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.app.user_config import UserConfig
from flwr.serverapp import Grid, ServerApp

from fgrpo.config import Config
from fgrpo.engines.base import Observer
from fgrpo.engines.flower.engine import Flower
from fgrpo.engines.flower.setup import options, run_config
from fgrpo.experiment import resume, train
from fgrpo.participation import participants
from fgrpo.records import ClientData
from fgrpo.run_folder import RunFolder
from fgrpo.server.unread import unread
from fgrpo.show.progress import Observers, Progress
from fgrpo.show.report import write_report
from fgrpo.show.sinks import curve_writer
from fgrpo.show.terminal import print_summary


def server_app() -> ServerApp:
    """Return the ServerApp."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        folder = play(grid, context.run_config)
        report = write_report(folder)
        print_summary(list(folder.records()))
        print(f"model:  {folder.path / 'model'}\nreport: {report}", flush=True)

    return app


def play(grid: Grid, keys: UserConfig) -> RunFolder:
    """Start the run that `output_dir` names, or go on with it from its last whole round."""
    config = run_config(keys)
    assert config.output_dir is not None
    path = Path(config.output_dir)
    if not RunFolder(path).config_file.is_file():
        return train(config, _observed, partial(_nodes, grid, ()))
    known = [
        record.client for record in RunFolder(path).records() if isinstance(record, ClientData) and record.rows != 0
    ]
    return resume(path, options(keys), _observed, partial(_nodes, grid, known))


@contextmanager
def _nodes(grid: Grid, known: Sequence[str], config: Config) -> Iterator[Flower]:
    yield Flower(grid, config, known)


@contextmanager
def _observed(config: Config, folder: RunFolder, clients: Sequence[str]) -> Iterator[Observer]:
    for line in unread(config):
        print(f"note: {line}")
    done = max(folder.rounds(), default=0)
    asked = len(participants(clients, config, done + 1))
    progress = Progress(config.rounds, clients, asked=asked, done=done)
    with curve_writer(config, folder) as curves, progress:
        yield Observers([progress, curves])
