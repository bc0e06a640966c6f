"""The errors that a person can mend. The CLI prints them as one line; anything else is a bug with its traceback."""

from __future__ import annotations


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
