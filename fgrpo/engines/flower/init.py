"""A ready app folder, for `flwr run`."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from fgrpo.errors import RunError


def init(folder: Path) -> list[Path]:
    """Write an app into a folder that is new or empty, and return its files.

    Raises:
        RunError: there is something in it, or it cannot be written.
    """
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    if not re.match("[a-z]", name):
        raise RunError(
            f"flower init: the folder's name {folder.resolve().name!r} also names the app; begin with a letter"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RunError(f"flower init: {folder} is not empty; name a new folder")
        written = []
        for template in sorted((files("fgrpo.engines.flower") / "app").iterdir(), key=lambda file: file.name):
            path = folder / template.name.removesuffix(".in")
            path.write_text(template.read_text().replace("@NAME@", name))
            written.append(path)
        return written
    except OSError as error:
        raise RunError(f"flower init: {folder} cannot be written: {error.strerror}") from None
