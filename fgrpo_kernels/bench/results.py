"""Files of results: `<op>_<device>_<date>.json`, whole on disk after every record.

The day's second is `..._<date>-2.json`. The format is in `benchmarks/results/README.md` of the repository.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def results_folder() -> Path:
    """$OUT, or runs/bench."""
    return Path(os.environ.get("OUT", "runs/bench"))


class ResultFile:
    """One run of one benchmark: the header is there from the start, records come one by one."""

    def __init__(self, name: str, header: Record, folder: Path | None = None, **content: Any) -> None:
        device = re.sub(r"[^A-Za-z0-9]+", "-", header["device"]).strip("-")
        folder = folder or results_folder()
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{name}_{device}_{header['date'][:10]}"
        names = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
        self.path = next(path for name in names if not (path := folder / f"{name}.json").exists())
        self.content: Record = {"header": header, **content, "results": []}
        self.write()

    @property
    def results(self) -> list[Record]:
        records: list[Record] = self.content["results"]
        return records

    def add(self, record: Record) -> None:
        self.results.append(record)
        self.write()

    def write(self) -> None:
        """Replace the file as a whole: who is interrupted keeps what was there."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)


def save(name: str, header: Record, results: Sequence[Record], folder: Path | None = None, **content: Any) -> Path:
    """Write results that are all there; return the file."""
    file = ResultFile(name, header, folder, **content)
    file.results.extend(results)
    file.write()
    return file.path


def failed(name: str, reason: str, **context: Any) -> Record:
    """A contender that was not timed: it is not installed, ran out of memory, or gave a wrong result."""
    return {"name": name, **context, "not_measured": reason}


def series(path: Path) -> str:
    """What a file's name has in common with those of other days."""
    return re.sub(r"_\d{4}-\d\d-\d\d(-\d+)?$", "", path.stem)


def by_age(contents: Mapping[Path, Record]) -> list[tuple[Path, Record]]:
    """The newest last; before all others those for which only some cases or contenders were chosen."""

    def age(item: tuple[Path, Record]) -> tuple[bool, str]:
        settings = item[1].get("settings", {})
        return not (settings.get("only") or settings.get("against")), item[1]["header"]["date"]

    return sorted(contents.items(), key=age)


def load(paths: Iterable[Path]) -> dict[Path, Record]:
    """The contents of files, and of the JSON files in folders, by path.

    Raises:
        ValueError: for a file that holds no results; it names the file.
    """
    found: dict[Path, Record] = {}
    for path in paths:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            content = json.loads(file.read_text())
            if not isinstance(content, dict) or not {"header", "results"} <= content.keys():
                raise ValueError(f"{file} is no file of results: expected 'header' and 'results'")
            found[file] = content
    return found
