"""A study's file: YAML, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fgrpo import yaml_text
from fgrpo.config import Config
from fgrpo.errors import ConfigError
from fgrpo.nearest import did_you_mean
from fgrpo.paths import found_from
from fgrpo.study.spec import BASELINES, Arm, Scenario, Study, Tune, baselines, check_study, seeds


@dataclass(frozen=True)
class _File:
    """The types by which names in the file stay text (see `fgrpo.yaml_text`)."""

    base: Config
    arms: dict[str, Config]
    scenarios: dict[str, Config] | list[str | dict[str, Config]]
    tune: dict[str, Any]
    baselines: list[str]
    reference: str
    output_dir: str
    extends: str


_KEYS = (
    *("extends", "base", "arms", "scenarios", "seeds", "rounds", "tune"),
    *("reference", "baselines", "last", "keep", "output_dir"),
)


def read_study(path: str | Path) -> Study:
    """Return the study that a YAML file describes; `docs/studies.md` has every key.

    Raises:
        ConfigError: in one line, with the key.
    """
    path = Path(path)
    keys, text = _read(path, ())
    try:
        return _study(keys, path, text)
    except ConfigError as error:
        raise ConfigError(f"study {path}: {error}") from None


def _read(path: Path, extended_by: Sequence[Path]) -> tuple[Mapping[str, Any], str]:
    """Return the keys of a file, those of the studies that it extends among them, and the text of all of these."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        keys = yaml_text.load(text, _File)
    except OSError as error:
        raise ConfigError(f"study {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"study {path}: {' '.join(str(error).split())}") from None
    try:
        keys = {key: value for key, value in _mapping("a study", keys).items() if not key.startswith("x-")}
        _known("", keys, _KEYS)
        keys |= {name: _found_from(keys[name], path.parent) for name in ("arms", "scenarios") if name in keys}
        if "base" in keys:
            keys["base"] = _base(keys["base"], path)
        if (other := keys.pop("extends", None)) is None:
            return keys, text
        return _extended(keys, text, path.parent / str(other), (*extended_by, path))
    except ConfigError as error:
        raise ConfigError(f"study {path}: {error}") from None


def _extended(
    keys: Mapping[str, Any], text: str, other: Path, extended_by: Sequence[Path]
) -> tuple[Mapping[str, Any], str]:
    if other.resolve() in [path.resolve() for path in extended_by]:
        raise ConfigError(f"extends: {other} extends this study in turn")
    theirs, their_text = _read(other, extended_by)
    merged = {**theirs, "output_dir": None, **keys}
    if isinstance(picked := keys.get("scenarios"), list):
        merged["scenarios"] = _picked(picked, _mapping("scenarios", theirs.get("scenarios")), other)
    return merged, f"{text.rstrip()}\n\n# {other}:\n{their_text}"


def _picked(scenarios: Sequence[Any], theirs: Mapping[str, Any], other: Path) -> Mapping[str, Any]:
    """Return scenarios of another study's by their names, and those that are said in full."""
    picked: dict[str, Any] = {}
    for said in scenarios:
        if not isinstance(said, str | dict):
            raise ConfigError(f"scenarios: got {said!r:.60} in the list, expected a name, or a name with its keys")
        if isinstance(said, str) and said not in theirs:
            raise ConfigError(f"scenarios: {other} has no '{said}'{did_you_mean(said, theirs)}")
        named = {said: theirs[said]} if isinstance(said, str) else said
        if twice := picked.keys() & named.keys():
            raise ConfigError(f"scenarios: '{min(twice)}' is there twice")
        picked |= named
    return picked


def _study(keys: Mapping[str, Any], path: Path, text: str) -> Study:
    arms = [_arm(name, values) for name, values in _mapping("arms", keys.get("arms")).items()]
    arms += [Arm(name, baseline=name) for name in baselines(keys.get("baselines"), [arm.name for arm in arms])]
    scenarios = _mapping("scenarios", keys.get("scenarios")) or {path.stem: {}}
    if "base" not in keys:
        raise ConfigError("base: expected the path of a configuration, or its keys")
    if not arms:
        raise ConfigError("arms: there are none; name at least one, as in `arms: {fedavg: {aggregation.rule: fedavg}}`")
    study = Study(
        name=path.stem,
        base=keys["base"],
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


def _found_from(named: Any, folder: Path) -> Any:
    """Return overrides by name with their paths, which are relative to the file, as they are from here."""
    if isinstance(named, list):
        return [_found_from(one, folder) for one in named]
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
    baseline, tune, grid, finalists = (overrides.pop(key, None) for key in ("baseline", "tune", "grid", "finalists"))
    if baseline is not None and baseline not in BASELINES:
        raise ConfigError(f"arms.{name}.baseline: '{baseline}' is none of {', '.join(BASELINES)}")
    if not isinstance(tune, str | None):
        raise ConfigError(f"arms.{name}.tune: got {tune!r:.60}, expected a key of the configuration, such as train.lr")
    grid = None if grid is None else _grid(f"arms.{name}.grid", grid)
    finalists = None if finalists is None else _count(f"arms.{name}.finalists", finalists)
    return Arm(name, overrides, baseline, tune, grid, finalists)


def _scenario(name: str, values: Any) -> Scenario:
    overrides = dict(_mapping(f"scenarios.{name}", values))
    measure = overrides.pop("measure", "*")
    patterns = [measure] if isinstance(measure, str) else measure
    if not isinstance(patterns, list) or not patterns:
        raise ConfigError(f"scenarios.{name}.measure: got {measure!r}, expected names of clients")
    return Scenario(name, overrides, tuple(str(pattern) for pattern in patterns))


def _tune(value: Any) -> Tune:
    keys = _mapping("tune", value)
    _known("tune.", keys, ("key", "grid", "seeds", "finalists"))
    if missing := [key for key in ("key", "grid", "seeds") if key not in keys]:
        example = "tune: {key: server.lr, grid: [1, 2], seeds: [9]}"
        raise ConfigError(f"tune.{missing[0]}: it is missing, as in `{example}`")
    return Tune(
        str(keys["key"]),
        _grid("tune.grid", keys["grid"]),
        seeds("tune.seeds", keys["seeds"]),
        _count("tune.finalists", keys.get("finalists", 1)),
    )


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
