"""What a study asks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fgrpo.errors import ConfigError
from fgrpo.nearest import did_you_mean
from fgrpo.show.text import counted

BASELINES = ("centralised", "local")
Overrides = Mapping[str, Any]  # by key of the configuration: `server.lr`, or a whole section


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        overrides: what it changes in the configuration.
        baseline: `centralised` or `local` in place of a federation; None is a federation.
        tune: a key that is tuned for this arm in place of the study's; None is the study's.
        grid: values of the tuned key to try for this arm; None is the study's grid.
        finalists: how many of its grid are played with the reported seeds; None is as many as the study says.
    """

    name: str
    overrides: Overrides = field(default_factory=dict)
    baseline: str | None = None
    tune: str | None = None
    grid: tuple[Any, ...] | None = None
    finalists: int | None = None


@dataclass(frozen=True)
class Scenario:
    """One situation that every arm is put into.

    Attributes:
        overrides: what it changes in the configuration; an arm's own come after.
        measure: patterns of the names of those clients that count in the measures, `*` for any characters.
    """

    name: str
    overrides: Overrides = field(default_factory=dict)
    measure: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Tune:
    """A key that each arm in each scenario gets the best value of, chosen on other seeds than it is reported on.

    Attributes:
        seeds: on which every value of the grid is played; none of them is reported.
        finalists: how many of the best values there are played with the reported seeds; each of these is reported at
            the one that is best on the others.
    """

    key: str
    grid: tuple[Any, ...]
    seeds: tuple[int, ...]
    finalists: int = 1

    def key_of(self, arm: Arm) -> str:
        return arm.tune or self.key

    def grid_of(self, arm: Arm) -> tuple[Any, ...]:
        return arm.grid or self.grid

    def finalists_of(self, arm: Arm) -> int:
        return arm.finalists or self.finalists


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        base: path of the configuration that arms and scenarios change, or its keys.
        reference: name of the arm that the others are compared with.
        last: evaluations at the end of a run whose mean is its final accuracy.
        keep: leave the state and the payloads of finished cells on disk.
        text: the file as written, for the report.
        sweep_of: the configuration that several values were asked of; None for a study with a file.
    """

    name: str
    base: Path | Mapping[str, Any]
    arms: tuple[Arm, ...]
    scenarios: tuple[Scenario, ...]
    seeds: tuple[int, ...]
    reference: str
    rounds: int | None = None
    tune: Tune | None = None
    last: int = 3
    keep: bool = False
    output_dir: Path = Path("studies")
    text: str = ""
    sweep_of: Path | None = None

    @property
    def title(self) -> str:
        """What it is called towards people."""
        return f"study {self.name}" if self.sweep_of is None else f"sweep of {self.sweep_of}"

    @property
    def arm_word(self) -> str:
        """What an arm is called: whoever sweeps has asked for configurations."""
        return "arm" if self.sweep_of is None else "configuration"

    @property
    def counts(self) -> str:
        """How much of what it consists of."""
        seeds = counted(len(self.seeds), "seed")
        if self.sweep_of is None:
            return f"{counted(len(self.arms), 'arm')} x {counted(len(self.scenarios), 'scenario')} x {seeds}"
        baselines = sum(arm.baseline is not None for arm in self.arms)
        configurations = counted(len(self.arms) - baselines, "configuration")
        beside = f" and {counted(baselines, 'baseline')}" if baselines else ""
        return f"{configurations}{beside} x {seeds}"

    def part(self, scenarios: Sequence[str] = (), arms: Sequence[str] = (), reference: str | None = None) -> Study:
        """Return the study of these scenarios and arms only, of all where none is named; the reference arm stays.

        Args:
            reference: the arm to compare with; None is the study's.

        Raises:
            ConfigError: there is no scenario or arm of one of the names.
        """
        reference = self.reference if reference is None else reference
        for what, names, things in (("scenario", scenarios, self.scenarios), ("arm", (*arms, reference), self.arms)):
            known = [thing.name for thing in things]
            if unknown := [name for name in names if name not in known]:
                suggestion = did_you_mean(unknown[0], known)
                raise ConfigError(f"{self.title}: there is no {what} '{unknown[0]}'{suggestion}")
        return replace(
            self,
            scenarios=tuple(s for s in self.scenarios if not scenarios or s.name in scenarios),
            arms=tuple(a for a in self.arms if not arms or a.name in (*arms, reference)),
            reference=reference,
        )

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def scenario(self, name: str) -> Scenario:
        return next(scenario for scenario in self.scenarios if scenario.name == name)


def check_study(study: Study) -> None:
    """Raise ConfigError for what does not fit together."""
    names = [arm.name for arm in study.arms]
    if study.reference not in names:
        raise ConfigError(f"reference: there is no arm '{study.reference}'" + did_you_mean(study.reference, names))
    for what, all_names in (("arms", names), ("scenarios", [scenario.name for scenario in study.scenarios])):
        slugs = [slug(name) for name in all_names]
        if twice := next((name for name, s in zip(all_names, slugs, strict=True) if slugs.count(s) > 1), None):
            raise ConfigError(f"{what}: '{twice}' and another name would have the same folder")
    if study.tune is None and (gridded := next((arm.name for arm in study.arms if arm.grid is not None), None)):
        raise ConfigError(f"arms.{gridded}.grid: nothing is tuned; set tune: {{key: ..., grid: ..., seeds: ...}}")
    for arm in study.arms:
        for key, value in (("tune", arm.tune), ("finalists", arm.finalists)):
            if value is not None and arm.grid is None:
                raise ConfigError(f"arms.{arm.name}.{key}: {value} needs a grid of its own, `grid: [...]` beside it")
    if study.tune is not None and (both := set(study.tune.seeds) & set(study.seeds)):
        raise ConfigError(f"tune.seeds: {min(both)} is also reported; tune on other seeds than those in seeds")
    if study.tune is not None and len(study.seeds) == 1:
        finalists = {"tune": study.tune.finalists} | {f"arms.{arm.name}": arm.finalists or 1 for arm in study.arms}
        if several := [key for key, number in finalists.items() if number > 1]:
            raise ConfigError(
                f"{several[0]}.finalists: a seed is reported at the finalist that is best on the others; "
                "expected two seeds or more"
            )


def slug(name: str) -> str:
    """Return a name as a part of a path."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._") or "_"


def baselines(names: Any, arms: Sequence[str]) -> list[str]:
    """Return checked names of baselines, without those that an arm bears already."""
    for name in names or []:
        if name not in BASELINES:
            raise ConfigError(f"baselines: '{name}' is none of {', '.join(BASELINES)}" + did_you_mean(name, BASELINES))
    return [name for name in names or [] if name not in arms]


def seeds(key: str, value: Any) -> tuple[int, ...]:
    """Return checked seeds: a list of whole numbers, or how many, from 0 on."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return tuple(range(value))
    if not isinstance(value, list) or not value or not all(type(seed) is int for seed in value):
        raise ConfigError(f"{key}: got {value!r}, expected a list of whole numbers, or how many")
    if len(set(value)) < len(value):
        raise ConfigError(f"{key}: a seed is there twice in {value}")
    return tuple(value)
