"""README's table of results: the headlines that benchmarks gave their own figures.

A result with a `headline` is a line: `what` the thing measured and its size, `figure` a number with its unit, `against`
the strongest contender of the same run and how much this is of it. Beside it is what repeats it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fgrpo_kernels.bench.pytest_benchmark import FOLDER
from fgrpo_kernels.bench.results import Record, series


class Row(NamedTuple):
    """A line of the table."""

    date: str
    what: str
    again: str
    figure: str
    against: str
    device: str
    commit: str
    file: str


def rows(contents: Mapping[Path, Record]) -> list[Row]:
    """The figures of the newest file that has a (what, device), by date.

    Raises:
        ValueError: for a headline that lacks something, or of a result that was not measured; it names the file.
    """
    found = sorted(row for path, content in contents.items() for row in _rows_of(path, content))
    newest = {(row.what, row.device): row.file for row in found}
    return [row for row in found if newest[row.what, row.device] == row.file]


def table(found: list[Row], folder: str) -> str:
    """The rows as Markdown, each linked to its file in `folder`; nothing for none."""
    if not found:
        return ""
    lines = ["| what | again | figure | against | measured |", "|---|---|---|---|---|"]
    for row in found:
        measured = f"{row.device}; {row.date[:10]}, commit {row.commit}"
        what = f"[{row.what}]({folder}/{row.file})"
        lines.append(f"| {what} | {row.again} | {row.figure} | {row.against} | {measured} |")
    return "\n".join(lines) + "\n"


def _rows_of(path: Path, content: Record) -> Iterator[Row]:
    for result in content["results"]:
        if "headline" not in result:
            continue
        if "not_measured" in result:
            raise ValueError(f"{path.name}: '{result['name']}' has a headline but was not measured")
        headline, header = result["headline"], content["header"]
        what, figure, against = (_text(path, headline, key) for key in ("what", "figure", "against"))
        date, device, commit = (_text(path, header, key) for key in ("date", "device", "commit"))
        yield Row(date, what, f"`{_again(path, content, result)}`", figure, against, device, commit[:7], path.name)


def _again(path: Path, content: Record, result: Record) -> str:
    """What measures it again."""
    if "op" in content:
        return f'python -m fgrpo_kernels.bench {content["op"]} --only "{result["case"]}"'
    script, _, _ = series(path).rpartition("_")
    if not script.startswith("round_"):
        return f"python {FOLDER}/bench_{script}.py"
    settings = content["settings"]
    numbers = [f"--{name}={settings[name]}" for name in ("rounds", "repetitions")]
    config = f"--config=configs/{settings['config']}.yaml"
    return shlex.join(["python", f"{FOLDER}/bench_round.py", config, *numbers, *settings["overrides"]])


def _text(path: Path, holder: dict[str, Any], key: str) -> str:
    value = holder.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{path.name}: a figure in README needs '{key}', a text that is not empty; got {value!r}")
    return value.replace("|", "\\|")
