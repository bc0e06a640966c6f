"""What a contender is told, and what it tells: the task, and for every round when it ran and what was done in it.

Moments are those of `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from fgrpo.config import Config
from fgrpo.settings import read_config


@dataclass(frozen=True)
class Task:
    """What every contender plays: a configuration's rounds, on so many cores."""

    config_file: str
    overrides: tuple[str, ...]
    cores: int

    def config(self) -> Config:
        return read_config(self.config_file, self.overrides)


@dataclass(frozen=True)
class Work:
    """What a client did in a round; or all of them together.

    Attributes:
        sequences, tokens: completions sampled, and their tokens.
        groups, informative: prompts, and those whose completions' rewards differ, so that they teach something.
        rollout_s, reward_s, train_s: seconds at the client.
    """

    sequences: int
    tokens: int
    groups: int
    informative: int
    rollout_s: float
    reward_s: float
    train_s: float

    @staticmethod
    def total(works: Iterable[Work]) -> Work:
        works = list(works)
        return Work(*(sum(getattr(work, f.name) for work in works) for f in fields(Work)))


@dataclass(frozen=True)
class Round:
    """A round that was played.

    Attributes:
        start, end: moments between which it ran, for whoever watches the processes from outside.
        seconds: what it took; more than `end - start` where something is done for it later.
        stages: seconds by stage as the contender counts them, where it does.
        uplink_bytes: from all clients to the server.
    """

    start: float
    end: float
    seconds: float
    stages: dict[str, float]
    uplink_bytes: int
    work: Work


@dataclass
class Played:
    """All that a contender tells.

    Attributes:
        ready: the moment from which the first round could have begun, if it did not at once.
        before, after: held-out accuracy by client before the rounds, where it was measured, and after them.
    """

    ready: float | None = None
    rounds: list[Round] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
