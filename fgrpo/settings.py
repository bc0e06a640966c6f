"""Reading a configuration: YAML file and command-line overrides. Mistakes become one line that names the key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from fgrpo import yaml_text
from fgrpo.checks import check
from fgrpo.config import Config
from fgrpo.errors import ConfigError
from fgrpo.mistakes import one_line
from fgrpo.paths import found_from, found_here_or_from, seen_from


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration in a YAML file with overrides such as `["--train.lr", "1e-4"]` applied.

    Paths in the file are relative to it, then to the working folder; those of overrides the other way round.

    Raises:
        ConfigError: in one line, with the key and, for an unknown one, the nearest known key.
    """
    folder = Path(path).parent
    config = make_config(found_from(read_keys(path), folder), overrides, path, folder)
    if config.rewards.folder is None:
        config = replace(config, rewards=replace(config.rewards, folder=str(folder)))
    return config


def make_config(
    keys: dict[str, Any], overrides: Sequence[str], source: str | Path, folder: Path | None = None
) -> Config:
    """Return the configuration of keys as YAML holds them, with overrides as in `read_config`; errors name the source.

    Args:
        folder: where paths in overrides lead from that lead nowhere from the working folder.

    Raises:
        ConfigError: as `read_config` does.
    """
    parser, keys, options = config_parser(), deepcopy(keys), list(_options(overrides))
    for key, value in options:
        _set(keys, key, value)
    if folder is not None:
        keys = found_here_or_from(keys, folder)
    try:
        config = parser.instantiate(parser.parse_object(_without_nulls(keys, Config)))
    except ArgumentError as error:
        line = one_line(str(error), keys)
        about = re.match(r"(?:unknown key ')?([\w.]+)", line)
        of_option = about is not None and any(f"{key}.".startswith(f"{about[1]}.") for key, _ in options)
        raise ConfigError(line if of_option else f"configuration {source}: {line}") from None
    config = Config(**{field.name: config[field.name] for field in fields(Config)})
    check(config)
    return config


def read_keys(path: str | Path) -> dict[str, Any]:
    """Return what a YAML file of a configuration, or of a part of it, holds by key; see `read_config` for errors."""
    if Path(path).is_dir():
        inside = Path(path) / "config.yaml"
        raise ConfigError(f"configuration {path} is a folder" + (f"; its file is {inside}" if inside.is_file() else ""))
    try:
        loaded = yaml_text.load(Path(path).read_text(encoding="utf-8-sig"), Config)
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"configuration {path}: not a text file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration {path}: {one_line(str(error))}") from None
    if not isinstance(loaded, dict | None):
        raise ConfigError(f"configuration {path}: it holds {loaded!r:.60}, expected keys and their values")
    return loaded or {}


def _options(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Read `--key value` and `--key=value`; a key's dashes are underscores, but for clients' names."""
    rest = iter(overrides)
    for option in rest:
        name, equals, value = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not name:
            raise ConfigError(f"unrecognized argument '{option}', expected --key value")
        parts = name.split(".")
        kept = {1} if parts[0] == "clients" else set()
        key = ".".join(part if i in kept else part.replace("-", "_") for i, part in enumerate(parts))
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"{key}: expected a value after --{name}")
        yield key, value


def _set(keys: dict[str, Any], key: str, value: str) -> None:
    """Set a key such as `train.lr` in what was read from the file to an option's value, read for what the key holds."""
    *parents, last = key.split(".")
    kind: Any = Config
    for parent in parents:
        kind, inner = yaml_text.kind_of(kind, parent), keys.get(parent)
        keys[parent] = dict(inner) if isinstance(inner, dict) else {}
        keys = keys[parent]
    try:
        kind = yaml_text.kind_of(kind, last)
        keys[last] = _over(keys.get(last), yaml_text.load_value(value, kind), kind)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {one_line(str(error))}") from None


def _over(old: Any, new: Any, kind: Any) -> Any:
    """Return a new value. Keys of a section that it leaves out stay, and of sections in a list of the same length."""
    if isinstance(old, dict) and isinstance(new, dict):
        merged = {key: _over(old.get(key), value, yaml_text.kind_of(kind, key)) for key, value in new.items()}
        return {**old, **merged} if yaml_text.is_section(kind) else merged
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [_over(*pair, yaml_text.item_of(kind)) for pair in zip(old, new, strict=True)]
    return new


def _without_nulls(value: Any, kind: Any, key: str = "") -> Any:
    """Return keys with nothing set in a section that is empty; raise ArgumentError for a null that says nothing else.

    And for a section that holds a value instead of keys, which jsonargparse answers with an error of its own.
    """
    if isinstance(value, dict):
        inner = {name: (yaml_text.kind_of(kind, name), f"{key}.{name}".lstrip(".")) for name in value}
        return {name: _without_nulls(x, *inner[name]) for name, x in value.items()}
    if isinstance(value, list):
        return [_without_nulls(x, yaml_text.item_of(kind), key) for x in value]
    if value is not None or kind is Any or NoneType in get_args(kind):
        if value is not None and all(map(is_dataclass, yaml_text.alternatives(kind))):
            raise ArgumentError(None, f"{key}: expected keys and their values, got {value!r:.60}")
        return value
    if yaml_text.is_section(kind) or get_origin(kind) is dict:
        return {}
    raise ArgumentError(None, f"{key} is null, expected a value")


@cache
def config_parser() -> ArgumentParser:
    """Return the parser of every key of `Config`; its help lists them. One for all, as it takes long to make."""
    parser = ArgumentParser(exit_on_error=False, prog="fgrpo train CONFIG")
    parser.add_class_arguments(Config, nested_key=None)
    return parser


def to_yaml(config: Config, folder: Path | None = None) -> str:
    """Return a configuration as YAML that `read_config` reads back, in this folder or, if None, in the working one."""
    keys = asdict(config)
    return yaml.safe_dump(keys if folder is None else seen_from(keys, folder), sort_keys=False)
