"""From a study to its cells: single runs, each with its whole configuration."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from fgrpo.checks import check
from fgrpo.config import AggregationConfig, CodecConfig, Config, EngineConfig, ServerConfig
from fgrpo.errors import ConfigError
from fgrpo.participation import clients_per_round
from fgrpo.settings import read_config
from fgrpo.study.spec import Arm, Overrides, Scenario, Study, slug

_NO_SERVER = ("server", "aggregation", "codec")  # sections that mean nothing without a federation


@dataclass(frozen=True, eq=False)
class Cell:
    """One run. Two with the same folder are the same.

    Attributes:
        value: of the tuned key; None if the arm is not tuned in this scenario.
        tuning: whether it only serves to choose the value.
    """

    scenario: str
    arm: str
    seed: int
    value: Any
    tuning: bool
    baseline: str | None
    config: Config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and self.folder == other.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    @cached_property
    def folder(self) -> Path:
        """Its folder within the study's. It ends with a digest of all that the run depends on."""
        value = "" if self.value is None else f"{slug(str(self.value))}-"
        rewards = replace(self.config.rewards, folder=None)  # where somebody keeps it changes nothing
        said = _said(replace(self.config, engine=EngineConfig(), rewards=rewards))
        digest = blake2b(json.dumps([self.baseline, said], sort_keys=True).encode(), digest_size=4).hexdigest()
        return Path(slug(self.scenario), slug(self.arm), f"{value}seed{self.seed}-{digest}")

    @property
    def name(self) -> str:
        """What it is called towards people."""
        value = "" if self.value is None else f" at {self.value}"
        return f"{self.scenario} / {self.arm}{value} / seed {self.seed}" + (" (tuning)" if self.tuning else "")

    @property
    def work(self) -> int:
        """Its size, to guess time by: clients' turns in all rounds."""
        alone = replace(self.config, participation=None) if self.baseline == "local" else self.config
        return self.config.rounds * (clients_per_round(alone) or 1)


@dataclass(frozen=True)
class Pair:
    """An arm in a scenario.

    Attributes:
        configs: by value of the tuned key; one under None if the arm is not tuned here.
        tuning_seeds: none if it is not tuned.
    """

    scenario: Scenario
    arm: Arm
    configs: Mapping[Any, Config]
    tuning_seeds: tuple[int, ...] = field(default=())

    def tuning(self) -> list[Cell]:
        """Return the cells that decide the value."""
        return [self._cell(value, seed, True) for value in self.configs for seed in self.tuning_seeds]

    def reported(self, value: Any, seeds: Sequence[int]) -> list[Cell]:
        """Return the cells that the tables are made of."""
        return [self._cell(value, seed, False) for seed in seeds]

    def _cell(self, value: Any, seed: int, tuning: bool) -> Cell:
        config = replace(self.configs[value], seed=seed)
        return Cell(self.scenario.name, self.arm.name, seed, value, tuning, self.arm.baseline, config)


def pairs(study: Study) -> list[Pair]:
    """Return every arm in every scenario, scenarios in order, their configurations resolved and checked.

    Raises:
        ConfigError: one of them is wrong; the message names the scenario, the arm and the key.
    """
    known: dict[Any, Any] = {}  # values of a tuned key as the configuration's type has them
    with _base_file(study) as base:
        return [_pair(study, base, scenario, arm, known) for scenario in study.scenarios for arm in study.arms]


def _pair(study: Study, base: Path, scenario: Scenario, arm: Arm, known: dict[Any, Any]) -> Pair:
    try:
        config = _resolved(study, base, scenario, arm)
        if not _is_tuned(study, scenario, arm):
            return Pair(scenario, arm, {None: config})
        assert study.tune is not None
        key, configs = study.tune.key_of(arm), {}
        for given in study.tune.grid_of(arm):
            if (key, given) not in known:
                known[key, given] = attrgetter(key)(read_config(base, options({key: given})))
            value = known[key, given]
            configs[value] = _with(config, key, value)
            check(configs[value])
        return Pair(scenario, arm, configs, study.tune.seeds)
    except ConfigError as error:
        reason = str(error).replace(f"configuration {base}: ", "")
        raise ConfigError(f"arm {arm.name} in scenario {scenario.name}: {reason}") from None


def _resolved(study: Study, base: Path, scenario: Scenario, arm: Arm) -> Config:
    rounds = {} if study.rounds is None else {"rounds": study.rounds}
    config = read_config(base, [*options(rounds), *options(scenario.overrides), *options(arm.overrides)])
    if arm.baseline is not None:
        server = config.server if _sets(arm.overrides, "server") else ServerConfig(optimizer="plain", step="fixed")
        config = replace(
            config,
            aggregation=AggregationConfig(rule="uniform"),
            codec=CodecConfig(codec="none", error_feedback=False),
            server=server,
        )
    names = config.clients
    if names and not any(fnmatchcase(name, pattern) for name in names for pattern in scenario.measure):
        raise ConfigError(f"measure: no client is called {' or '.join(scenario.measure)}")
    return replace(
        config,
        output_dir=None,
        evaluation=replace(config.evaluation, every=config.evaluation.every or 1),
        engine=EngineConfig(workers=0, threads=config.engine.threads or 1, stacked=config.engine.stacked),
    )


def options(overrides: Overrides) -> list[str]:
    """Return overrides as `read_config` takes them from a command line."""
    return [f"--{key}={_as_text(value)}" for key, value in overrides.items()]


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _is_tuned(study: Study, scenario: Scenario, arm: Arm) -> bool:
    """Whoever sets the key itself runs at that value, and a baseline has no server."""
    if study.tune is None:
        return False
    if arm.grid is not None:
        return True
    key = study.tune.key_of(arm)
    alone = arm.baseline is not None and key.split(".")[0] in _NO_SERVER
    return not (alone or _sets(arm.overrides, key) or _sets(scenario.overrides, key))


def _sets(overrides: Overrides, key: str) -> bool:
    """Whether overrides say something of a key such as `server.lr`, or of one in the section `server`."""
    for name, value in overrides.items():
        if name == key or name.startswith(f"{key}."):
            return True
        rest = key.removeprefix(f"{name}.")
        if rest != key and isinstance(value, Mapping) and _sets(value, rest):
            return True
    return False


def _with(config: Any, key: str, value: Any) -> Any:
    """Return a configuration, or a section, with another value at a key such as `server.lr`."""
    name, _, rest = key.partition(".")
    return replace(config, **{name: _with(getattr(config, name), rest, value) if rest else value})


@contextmanager
def _base_file(study: Study) -> Iterator[Path]:
    """Give the path of the configuration that everything starts from."""
    if isinstance(study.base, Path):
        yield study.base
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "base.yaml")
        path.write_text(yaml.safe_dump(dict(study.base), sort_keys=False))
        yield path


def _said(value: Any) -> Any:
    """Return a configuration without what is as by default, so that a new key changes no digest."""
    if is_dataclass(value):
        return {f.name: _said(v) for f in fields(value) if (v := getattr(value, f.name)) != _default(f)}
    if isinstance(value, Mapping):
        return {key: _said(inner) for key, inner in value.items()}
    return [_said(inner) for inner in value] if isinstance(value, list | tuple) else value


def _default(of: Any) -> Any:
    return of.default_factory() if of.default_factory is not MISSING else of.default
