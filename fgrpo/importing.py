"""What a configuration names of others' code: reward functions by their import path, and who draws the curves.

Imports nothing slow: what leads nowhere is told before a model is loaded.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fgrpo.checks import tasks_by_key
from fgrpo.config import NAMED_REWARDS, Config
from fgrpo.errors import ConfigError
from fgrpo.nearest import did_you_mean


def find_rewards(config: Config) -> None:
    """Have modules of reward functions looked for in `rewards.folder`, then in the working folder; import them.

    Raises:
        ConfigError: a name leads to no function.
    """
    for folder in (config.rewards.folder, os.curdir):
        if folder is not None and os.path.abspath(folder) not in sys.path:
            sys.path.append(os.path.abspath(folder))
    for _, tasks in tasks_by_key(config):
        for name in (name for task in tasks for name in reward_names(task.reward)):
            check_name(name)
            if ":" in name:
                imported(name, config.rewards.folder)


def check_report_to(config: Config) -> None:
    """Raise ConfigError for a name under `report_to` that is not installed."""
    for name in config.report_to:
        if find_spec(name) is None:
            raise ConfigError(f"report_to: {name} is not installed: pip install {name}")


def reward_names(spec: Any) -> list[str]:
    """The names in the value of a task's `reward`: none, one, several, or each with a weight."""
    return [spec] if isinstance(spec, str) else list(spec or ())


def check_name(name: str) -> None:
    """Raise ConfigError unless it is one of the rewards that have a name, or an import path."""
    if name not in NAMED_REWARDS and ":" not in name:
        raise ConfigError(
            f"unknown reward '{name}'{did_you_mean(name, NAMED_REWARDS)} "
            f"(known: {', '.join(NAMED_REWARDS)}, or an import path package.module:function)"
        )


def imported(name: str, folder: str | None = None) -> Any:
    """Return the function that an import path `package.module:function` leads to.

    Args:
        folder: where else than in the working folder and among what is installed it was looked for.

    Raises:
        ConfigError: it leads nowhere, or the module fails; with where it was looked for, or where it fails.
    """
    path, _, function = name.partition(":")
    try:
        module = import_module(path)
    except (Exception, SystemExit) as error:  # importing runs the user's own code
        missing = isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}.")
        reason = _not_found(path, folder) if missing else f"{type(error).__name__}: {error}{_raised_at(error)}"
        raise ConfigError(f"reward '{name}' cannot be imported: {reason}") from error
    if not hasattr(module, function):
        known = [known for known in vars(module) if not known.startswith("_")]
        where = shown_path(module.__file__) if module.__file__ else path
        raise ConfigError(f"reward '{name}': {where} has no '{function}'{did_you_mean(function, known)}")
    reward = getattr(module, function)
    if not callable(reward):
        raise ConfigError(f"reward '{name}' is {reward!r}, expected a function such as (completion, answer) -> float")
    return reward


def shown_path(file: str) -> str:
    """Return a file's path as a person would write it from here."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _not_found(path: str, folder: str | None) -> str:
    folders = [Path(folder), Path()] if folder is not None else [Path()]
    known = {file.stem if file.suffix == ".py" else file.name for where in folders for file in where.glob("*[!.]*")}
    places = " nor ".join(dict.fromkeys(f"in {where.absolute()}" for where in folders))
    return f"there is no module '{path}', neither installed nor {places}{did_you_mean(path, known)}"


def _raised_at(error: BaseException) -> str:
    """Return where a module failed while it was imported, if it was found at all."""
    frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in f.filename]
    return f" ({shown_path(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
