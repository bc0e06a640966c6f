"""The errors that a person can mend. The CLI prints them as one line; anything else is a bug with its traceback."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path


class FgrpoError(Exception):
    """Base of every error that FGRPO raises for a caller's mistake."""


class ConfigError(FgrpoError):
    """The configuration names something that does not exist or does not fit."""


class TaskError(FgrpoError):
    """A task could not be built, or its reward function gave something that is not a finite number."""


class TrainingError(FgrpoError):
    """Local training gave something that cannot be sent."""


class PayloadError(FgrpoError):
    """A payload does not match what the server expects. The message says which part and what was expected."""


class RunError(FgrpoError):
    """A run folder cannot be read, written or resumed, or a round was left without a single usable reply."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a run.

    Args:
        run: the folder of the run, whose whole rounds are kept.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.run = run


def how_to_install(package: str) -> str:
    """Return the command that installs a package which only some runs need, in the version that FGRPO asks for."""
    try:
        wanted = metadata.requires("fgrpo") or []
    except metadata.PackageNotFoundError:  # run from its sources
        wanted = []
    found = [line.partition(";")[0].strip() for line in wanted if re.match(r"[\w.-]+", line)[0] == package]  # type: ignore[index]
    return f"pip install '{found[0] if found else package}'"
