"""A folder to start from: a commented configuration, sample data, and a reward function of one's own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fgrpo.errors import RunError

_FILES = ("config.yaml", "questions.jsonl", "rewards.py")


def write_project(folder: Path) -> str:
    """Write the files, and return what to do with them.

    Raises:
        RunError: one of them is there already, or cannot be written.
    """
    there = [name for name in _FILES if (folder / name).exists()]
    if there:
        raise RunError(f"{folder / there[0]} is there already; name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (folder / name).write_bytes((files("fgrpo") / "template" / name).read_bytes())
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from None
    return (
        f"{folder}: config.yaml (commented), questions.jsonl (three schools' data), rewards.py (a reward of your own)\n"
        f"now: fgrpo train {folder / 'config.yaml'}"
    )
