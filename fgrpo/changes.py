"""What a run's configuration becomes when it is resumed with options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any

from fgrpo.config import Config
from fgrpo.errors import ConfigError, RunError
from fgrpo.run_folder import RunFolder
from fgrpo.settings import read_config

# What the state on disk, or the choice of held-out prompts, depends on.
_FIXED = (
    "model",
    "gguf_file",
    "quantization",
    "lora",
    "clients",
    "partition",
    "seed",
    "server.optimizer",
    "aggregation.gain",
    "aggregation.gain_prompts",
    "aggregation.gain_tasks",
    "privacy",
    "evaluation.prompts",
    "evaluation.clients",
    "evaluation.tasks",
)
_NO_MATTER = ("engine.workers",)  # results do not depend on it

Changes = dict[str, tuple[Any, Any]]  # by key: its value before and after


def changed(folder: RunFolder, overrides: Sequence[str]) -> tuple[Config, Changes]:
    """Return a run's configuration with overrides, and what they change.

    Raises:
        ConfigError: they touch what the run already stands on.
    """
    before, config = read_config(folder.config_file), read_config(folder.config_file, overrides)
    for key in (*_FIXED, "output_dir"):
        if attrgetter(key)(before) != attrgetter(key)(config):
            why = ": it decides which prompts are held out" if key.startswith("evaluation") else ""
            raise ConfigError(f"{key} of the run {folder.path} cannot be changed any more{why}; start a new run")
    old, new = _flat(asdict(before)), _flat(asdict(config))
    keys = [key for key in new | old if old.get(key) != new.get(key) and key not in _NO_MATTER]
    return config, {key: (old.get(key), new.get(key)) for key in keys}


def check_rounds_left(folder: RunFolder, rounds: int, changes: Changes) -> None:
    """Raise RunError where rounds that are done already are asked for, or changed."""
    done = max(folder.rounds(), default=0)
    if rounds < done:
        raise RunError(f"{folder.path} has {done} rounds already, got rounds {rounds}; nothing was changed")
    if rounds == done and changes.keys() - {"rounds"}:
        keys = ", ".join(changes.keys() - {"rounds"})
        raise RunError(
            f"{folder.path} has all its {done} rounds, which {keys} cannot change any more; ask for more with --rounds"
        )


def in_words(changes: Changes) -> str:
    return ", ".join(f"{key} {before} -> {after}" for key, (before, after) in changes.items())


def _flat(keys: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in keys.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
