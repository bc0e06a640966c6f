"""A run from its configuration: build the parts, play the rounds, keep the model."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from fgrpo.changes import changed, check_rounds_left
from fgrpo.config import Config
from fgrpo.engines.base import Engine, Observer
from fgrpo.engines.choice import chosen, open_engine
from fgrpo.errors import Interrupted, RunError
from fgrpo.federation import play
from fgrpo.importing import check_report_to, find_rewards
from fgrpo.lock import held
from fgrpo.paths import check_free
from fgrpo.records import ClientData, Evaluation, Failure, ServerState
from fgrpo.run_folder import RunFolder
from fgrpo.settings import read_config, to_yaml

MakeObserver = Callable[[Config, RunFolder, Sequence[str]], AbstractContextManager[Observer]]
OpenEngine = Callable[[Config], AbstractContextManager[Engine]]


def train(config: Config, observe: MakeObserver, start: OpenEngine = open_engine) -> RunFolder:
    """Start a new run in `config.output_dir`, or in a new folder under `runs/`.

    Everything that can be wrong with the configuration is found before the folder is made.

    Args:
        start: starts the engine; by default the one on this machine that the configuration asks for.
    """
    path = Path(config.output_dir or _new_folder())
    check_free(path)
    config = _decided(config)
    with start(config) as engine:
        folder = RunFolder.create(path, _kept_yaml(config, path))
        with held(folder.path):
            return _play(folder.initial(engine.initial_parameters()), engine, config, folder, observe)


def resume(path: Path, overrides: Sequence[str], observe: MakeObserver, start: OpenEngine = open_engine) -> RunFolder:
    """Go on from the last whole round of a run, to the same bits as if it had never stopped."""
    folder = RunFolder.open(path)
    config, changes = changed(folder, overrides)
    check_rounds_left(folder, config.rounds, changes)
    check_report_to(config)
    config = _decided(config)
    with _interruptible(folder), held(folder.path), start(config) as engine:
        _check_data(engine, folder)
        state = folder.load() if folder.rounds() else folder.initial(engine.initial_parameters())
        _check_fits(state, engine, folder)
        folder.reopen(_kept_yaml(config, path), changes)
        return _play(state, engine, config, folder, observe)


def is_finished(path: Path, overrides: Sequence[str]) -> bool:
    """Whether a run has all that it should have with these options, so that resuming it would do nothing."""
    folder = RunFolder.open(path)
    config, changes = changed(folder, overrides)
    return not changes and max(folder.rounds(), default=0) == config.rounds and (folder.path / "model").is_dir()


def _play(state: ServerState, engine: Engine, config: Config, folder: RunFolder, observe: MakeObserver) -> RunFolder:
    with _interruptible(folder), folder.log(), observe(config, folder, engine.clients) as observer:
        state = play(state, engine, config, folder, observer)
        observer.stage("server", "save")
        engine.save(state, folder.path / "model")
    return folder


@contextmanager
def _interruptible(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(folder.path) from None


def evaluate(path: Path, overrides: Sequence[str], round_number: int | None) -> list[Evaluation]:
    """Evaluate on clients' held-out prompts: a run's model after a round, or a configuration's starting model."""
    folder = RunFolder.open(path) if path.is_dir() else None
    if folder is None and round_number is not None:
        raise RunError(f"--round: {path} is a configuration, expected the folder of a run")
    config = _decided(read_config(path, overrides) if folder is None else changed(folder, overrides)[0])
    if folder is not None:
        folder.kept_round(round_number)
    with open_engine(config) as engine:
        state = ServerState.initial(engine.initial_parameters()) if folder is None else folder.load(round_number)
        if folder is not None:
            _check_data(engine, folder)
            _check_fits(state, engine, folder)
        evaluations = []
        for result in engine.evaluate(state):
            if isinstance(result, Failure):
                raise RunError(f"client {result.client} cannot be evaluated: {result.reason}")
            evaluations.append(result)
    return evaluations


def _decided(config: Config) -> Config:
    """Decide what the configuration leaves open about the engine, and find its reward functions."""
    find_rewards(config)
    return replace(config, engine=chosen(config))


def _kept_yaml(config: Config, folder: Path) -> str:
    """Return what a run's folder keeps of its configuration: of the engine that on which the bits depend."""
    return to_yaml(replace(config, engine=replace(config.engine, workers=None)), folder)


def _check_fits(state: ServerState, engine: Engine, folder: RunFolder) -> None:
    size = engine.manifest.size
    if len(state.params_P) != size:
        raise RunError(
            f"{folder.path}: its parameters are {len(state.params_P)}, those of the model {size}; "
            "was model or lora changed since?"
        )


def _check_data(engine: Engine, folder: RunFolder) -> None:
    """Raise RunError if a dataset is not what it was when the run began."""
    then = {record.client: record.files for record in folder.records() if isinstance(record, ClientData)}
    for client in engine.describe():
        # In the order of the client's tasks: from another working folder a file goes by another name.
        for (name, digest), before in zip(client.files.items(), then.get(client.client, {}).values(), strict=False):
            if before != digest:
                raise RunError(f"{folder.path}: dataset '{name}' has changed since the run began; start a new run")


def _new_folder() -> Path:
    return Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
