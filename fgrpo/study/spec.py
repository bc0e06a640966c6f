"""What a study asks: a YAML file, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fgrpo import yaml_text
from fgrpo.config import Config
from fgrpo.errors import ConfigError
from fgrpo.nearest import did_you_mean
from fgrpo.paths import found_from
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
    """

    name: str
    overrides: Overrides = field(default_factory=dict)
    baseline: str | None = None
    tune: str | None = None
    grid: tuple[Any, ...] | None = None


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
    """A key that each arm in each scenario gets the best value of, chosen on seeds that are not reported."""

    key: str
    grid: tuple[Any, ...]
    seeds: tuple[int, ...]

    def key_of(self, arm: Arm) -> str:
        return arm.tune or self.key

    def grid_of(self, arm: Arm) -> tuple[Any, ...]:
        return arm.grid or self.grid


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

    def part(self, scenarios: Sequence[str] = (), arms: Sequence[str] = ()) -> Study:
        """Return the study of these scenarios and arms only, of all where none is named; the reference arm stays.

        Raises:
            ConfigError: there is no scenario or arm of one of the names.
        """
        for what, names, things in (("scenario", scenarios, self.scenarios), ("arm", arms, self.arms)):
            known = [thing.name for thing in things]
            if unknown := [name for name in names if name not in known]:
                suggestion = did_you_mean(unknown[0], known)
                raise ConfigError(f"{self.title}: there is no {what} '{unknown[0]}'{suggestion}")
        return replace(
            self,
            scenarios=tuple(s for s in self.scenarios if not scenarios or s.name in scenarios),
            arms=tuple(a for a in self.arms if not arms or a.name in (*arms, self.reference)),
        )

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def scenario(self, name: str) -> Scenario:
        return next(scenario for scenario in self.scenarios if scenario.name == name)


@dataclass(frozen=True)
class _File:
    """The types by which names in the file stay text (see `fgrpo.yaml_text`)."""

    base: Config
    arms: dict[str, Config]
    scenarios: dict[str, Config]
    tune: dict[str, Any]
    baselines: list[str]
    reference: str
    output_dir: str


_KEYS = (
    *("base", "arms", "scenarios", "seeds", "rounds", "tune"),
    *("reference", "baselines", "last", "keep", "output_dir"),
)


def read_study(path: str | Path) -> Study:
    """Return the study that a YAML file describes; `docs/studies.md` has every key.

    Raises:
        ConfigError: in one line, with the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        keys = yaml_text.load(text, _File)
    except OSError as error:
        raise ConfigError(f"study {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"study {path}: {' '.join(str(error).split())}") from None
    try:
        return _study(keys, path, text)
    except ConfigError as error:
        raise ConfigError(f"study {path}: {error}") from None


def _study(keys: Any, path: Path, text: str) -> Study:
    keys = {key: value for key, value in _mapping("a study", keys).items() if not key.startswith("x-")}
    _known("", keys, _KEYS)
    keys |= {name: _found_from(keys.get(name), path.parent) for name in ("arms", "scenarios")}
    arms = [_arm(name, values) for name, values in _mapping("arms", keys.get("arms")).items()]
    arms += [Arm(name, baseline=name) for name in baselines(keys.get("baselines"), [arm.name for arm in arms])]
    scenarios = _mapping("scenarios", keys.get("scenarios")) or {path.stem: {}}
    if not arms:
        raise ConfigError("arms: there are none; name at least one, as in `arms: {fedavg: {aggregation.rule: fedavg}}`")
    study = Study(
        name=path.stem,
        base=_base(keys.get("base"), path),
        arms=tuple(arms),
        scenarios=tuple(_scenario(name, values) for name, values in scenarios.items()),
        seeds=seeds("seeds", keys.get("seeds", [0])),
        reference=keys.get("reference", arms[0].name),
        rounds=_count("rounds", keys["rounds"]) if "rounds" in keys else None,
        tune=_tune(keys["tune"]) if keys.get("tune") is not None else None,
        last=_count("last", keys.get("last", 3)),
        keep=_truth("keep", keys.get("keep", False)),
        output_dir=Path(keys.get("output_dir") or Path("studies") / path.stem),
        text=text,
    )
    check_study(study)
    return study


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
    if without := next((arm for arm in study.arms if arm.tune is not None and arm.grid is None), None):
        raise ConfigError(f"arms.{without.name}.tune: {without.tune} needs a grid of its own, `grid: [...]` beside it")
    if study.tune is not None and (both := set(study.tune.seeds) & set(study.seeds)):
        raise ConfigError(f"tune.seeds: {min(both)} is also reported; tune on other seeds than those in seeds")


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


def _found_from(named: Any, folder: Path) -> Any:
    """Return overrides by name with their paths, which are relative to the file, as they are from here."""
    if not isinstance(named, dict):
        return named
    return {name: found_from(keys, folder) if isinstance(keys, dict) else keys for name, keys in named.items()}


def _base(value: Any, path: Path) -> Path | Mapping[str, Any]:
    if value is None:
        raise ConfigError("base: expected the path of a configuration, or its keys")
    if not isinstance(value, str):
        keys = found_from(dict(_mapping("base", value)), path.parent)
        return {**keys, "rewards": {"folder": str(path.parent), **_mapping("base.rewards", keys.get("rewards"))}}
    beside = path.parent / value
    return beside if beside.exists() else Path(value)


def _arm(name: str, values: Any) -> Arm:
    overrides = dict(_mapping(f"arms.{name}", values))
    baseline, tune, grid = (overrides.pop(key, None) for key in ("baseline", "tune", "grid"))
    if baseline is not None and baseline not in BASELINES:
        raise ConfigError(f"arms.{name}.baseline: '{baseline}' is none of {', '.join(BASELINES)}")
    if not isinstance(tune, str | None):
        raise ConfigError(f"arms.{name}.tune: got {tune!r:.60}, expected a key of the configuration, such as train.lr")
    return Arm(name, overrides, baseline, tune, None if grid is None else _grid(f"arms.{name}.grid", grid))


def _scenario(name: str, values: Any) -> Scenario:
    overrides = dict(_mapping(f"scenarios.{name}", values))
    measure = overrides.pop("measure", "*")
    patterns = [measure] if isinstance(measure, str) else measure
    if not isinstance(patterns, list) or not patterns:
        raise ConfigError(f"scenarios.{name}.measure: got {measure!r}, expected names of clients")
    return Scenario(name, overrides, tuple(str(pattern) for pattern in patterns))


def _tune(value: Any) -> Tune:
    keys = _mapping("tune", value)
    _known("tune.", keys, ("key", "grid", "seeds"))
    if missing := [key for key in ("key", "grid", "seeds") if key not in keys]:
        example = "tune: {key: server.lr, grid: [1, 2], seeds: [9]}"
        raise ConfigError(f"tune.{missing[0]}: it is missing, as in `{example}`")
    return Tune(str(keys["key"]), _grid("tune.grid", keys["grid"]), seeds("tune.seeds", keys["seeds"]))


def _grid(key: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{key}: got {value!r}, expected a list of values")
    return tuple(value)


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict | None):
        raise ConfigError(f"{key}: it holds {value!r:.60}, expected keys and their values")
    return value or {}


def _count(key: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ConfigError(f"{key}: got {value!r}, expected a whole number of at least 1")
    return value


def _truth(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: got {value!r}, expected true or false")
    return value


def _known(prefix: str, keys: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := [key for key in keys if key not in known]:
        raise ConfigError(f"unknown key '{prefix}{unknown[0]}'" + did_you_mean(unknown[0], known))
