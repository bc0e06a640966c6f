"""Paths in a configuration: relative to its file, then to the working folder. A run keeps them relative to its own."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from fgrpo import yaml_text
from fgrpo.config import PACKAGED_MODELS, Config, RewardsConfig, TaskConfig
from fgrpo.errors import RunError

# The keys whose value may be a path, by the section that they are in.
_PATHS = {(Config, "model"), (TaskConfig, "dataset"), (TaskConfig, "test_dataset"), (RewardsConfig, "folder")}


def found_from(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keys of a configuration in `folder` with every path that leads somewhere from there as it is here."""
    if folder.resolve() == Path.cwd().resolve():
        return keys
    return _changed(keys, Config, lambda path: _from_here(folder / path) if leads_somewhere(folder / path) else path)


def found_here_or_from(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keys of options with every path that leads nowhere from here, but somewhere from `folder`, as it is
    from there."""

    def found(path: str) -> str:
        elsewhere = not leads_somewhere(Path(path)) and leads_somewhere(folder / path)
        return _from_here(folder / path) if elsewhere else path

    return _changed(keys, Config, found)


def seen_from(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keys of a configuration with every relative path that leads somewhere as it is from `folder`."""

    def seen(path: str) -> str:
        if Path(path).is_absolute() or not leads_somewhere(Path(path)):
            return path
        return os.path.relpath(_whole(Path(path)), folder.resolve())

    return _changed(keys, Config, seen)


def check_free(path: str | Path) -> None:
    """Raise RunError unless a new run can have this folder: it is not there yet, or empty."""
    path = Path(path)
    if (path / "config.yaml").exists() and (path / "rounds").is_dir():
        raise RunError(
            f"output_dir: {path} already holds a run; continue it with `fgrpo resume {path}` or name another"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"output_dir: {path} is there, and is no empty folder; name another")


def leads_somewhere(path: Path) -> bool:
    """Whether it is there, or is a pattern of files that are."""
    return path.exists() or bool(glob.glob(str(path)))


def _changed(value: Any, kind: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_changed(item, yaml_text.item_of(kind), change) for item in value]
    if not isinstance(value, dict):
        return value
    sections = [section for section in yaml_text.alternatives(kind) if is_dataclass(section)]
    return {
        key: change(inner)
        if any((section, key) in _PATHS for section in sections) and _may_be_a_path(key, inner)
        else _changed(inner, yaml_text.kind_of(kind, key), change)
        for key, inner in value.items()
    }


def _may_be_a_path(key: str, value: Any) -> bool:
    return isinstance(value, str) and value != "" and not (key == "model" and value in PACKAGED_MODELS)


def _from_here(path: Path) -> str:
    """Return a path relative to the working folder if it is inside, else absolute."""
    whole, here = _whole(path), Path.cwd().resolve()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


def _whole(path: Path) -> Path:
    """Return the path from the root. A file that is a link keeps its own name, which says what it holds."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name
