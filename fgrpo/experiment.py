"""A run from its configuration: build the parts, play the rounds, keep the model."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path

from safetensors import SafetensorError

from fgrpo.client.model import is_adapted
from fgrpo.client.owners import Client, make_clients
from fgrpo.client.policy import Policy
from fgrpo.config import Config
from fgrpo.engines.base import Observer
from fgrpo.engines.in_process import InProcess
from fgrpo.errors import ConfigError, RunError
from fgrpo.federation import play
from fgrpo.records import Evaluation, Failure, ServerState
from fgrpo.run_folder import RunFolder
from fgrpo.settings import read_config, to_yaml
from fgrpo.wire.parameters import Manifest, flatten, load_flat

MakeObserver = Callable[[Config, RunFolder, Sequence[str]], AbstractContextManager[Observer]]


def train(config: Config, observe: MakeObserver) -> RunFolder:
    """Start a new run in `config.output_dir`, or in a new folder under `runs/`.

    Everything that can be wrong with the configuration is found before the folder is made.
    """
    members, policy = _load(config)
    folder = RunFolder.create(config.output_dir or _new_folder(), to_yaml(config))
    with observe(config, folder, [member.name for member in members]) as observer:
        engine = _engine(config)(members, policy, config, observer)
        state = play(ServerState.initial(flatten(policy.model)), engine, config, folder, observer)
    _save_model(policy, state, folder)
    return folder


def resume(path: Path, overrides: Sequence[str], observe: MakeObserver) -> RunFolder:
    """Go on from the last whole round of a run, to the same bits as if it had never stopped."""
    folder = RunFolder.open(path)
    config = _changed(folder, overrides)
    members, policy = _load(config)
    state = folder.load() if folder.rounds() else ServerState.initial(flatten(policy.model))
    _check_fits(state, policy, folder)
    folder.reopen(to_yaml(config))
    with observe(config, folder, [member.name for member in members]) as observer:
        engine = _engine(config)(members, policy, config, observer)
        state = play(state, engine, config, folder, observer)
    _save_model(policy, state, folder)
    return folder


def evaluate(path: Path, overrides: Sequence[str], round_number: int | None) -> list[Evaluation]:
    """Evaluate on every client's held-out prompts: a run's model after a round, or a configuration's starting model."""
    folder = RunFolder.open(path) if path.is_dir() else None
    if folder is None and round_number is not None:
        raise RunError(f"--round: {path} is a configuration, expected the folder of a run")
    config = read_config(path, overrides) if folder is None else _changed(folder, overrides)
    members, policy = _load(config)
    state = ServerState.initial(flatten(policy.model)) if folder is None else folder.load(round_number)
    if folder is not None:
        _check_fits(state, policy, folder)
    evaluations = []
    for result in InProcess(members, policy, config, _Nobody()).evaluate(state):
        if isinstance(result, Failure):
            raise RunError(f"client {result.client} cannot be evaluated: {result.reason}")
        evaluations.append(result)
    return evaluations


def _load(config: Config) -> tuple[list[Client], Policy]:
    """Build clients and model; whatever is wrong with the configuration shows here."""
    members, policy = make_clients(config), Policy.load(config)
    if config.engine.stacked:
        from fgrpo.client.stacked_training import check_can_stack

        check_can_stack(policy)
    return members, policy


def _engine(config: Config) -> type[InProcess]:
    if not config.engine.stacked:
        return InProcess
    from fgrpo.engines.stacked import Stacked  # here, as it brings peft

    return Stacked


# What the state on disk, or the choice of held-out prompts, depends on.
_FIXED = (
    *("model", "gguf_file", "quantization", "lora", "clients", "partition", "seed"),
    *("server.optimizer", "evaluation.prompts"),
)


def _changed(folder: RunFolder, overrides: Sequence[str]) -> Config:
    """Return a run's configuration with overrides, none of which may touch what the run already stands on."""
    before, config = read_config(folder.config_file), read_config(folder.config_file, overrides)
    for key in (*_FIXED, "output_dir"):
        if attrgetter(key)(before) != attrgetter(key)(config):
            raise ConfigError(f"{key} of the run {folder.path} cannot be changed any more; start a new run")
    return config


class _Nobody:
    """An observer that looks away."""

    def stage(self, who: str, stage: str) -> None:
        pass

    def record(self, record: object) -> None:
        pass


def _check_fits(state: ServerState, policy: Policy, folder: RunFolder) -> None:
    size = Manifest.of(policy.model).size
    if len(state.params_P) != size:
        raise RunError(
            f"{folder.path}: its parameters are {len(state.params_P)}, those of the model {size}; "
            "was model or lora changed since?"
        )


def _new_folder() -> Path:
    return Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")


def _save_model(policy: Policy, state: ServerState, folder: RunFolder) -> None:
    """Write the trained model (or its adapter) and tokenizer as ordinary transformers files."""
    load_flat(policy.model, state.params_P)
    try:
        # peft would look for the base model on the hub to see whether its vocabulary was changed; it was not.
        options = {"save_embedding_layers": False} if is_adapted(policy.model) else {}
        policy.model.save_pretrained(folder.path / "model", **options)  # type: ignore[operator]
        policy.tokenizer.save_pretrained(folder.path / "model")
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{folder.path}: the model cannot be saved: {reason}; its rounds are whole") from error
