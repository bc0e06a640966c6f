"""Write README's table of results from the headlines in benchmarks/results.

    python scripts/results_table.py

The format is in benchmarks/results/README.md. Without a headline there is no table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
START = "<!-- written by scripts/results_table.py -->\n"
END = "<!-- end of the results -->\n"


class Row(NamedTuple):
    """A line of the table."""

    date: str
    what: str
    figure: str
    against: str
    device: str
    commit: str
    file: str


def rows(folder: Path) -> list[Row]:
    """Return the newest figure of each (what, against, device) in the folder's JSON files, by date.

    Raises:
        ValueError: for a headline that lacks something, or of a result that was not measured; it names the file.
    """
    found = [row for path in sorted(folder.glob("*.json")) for row in _rows_of(path)]
    newest = {(row.what, row.against, row.device): row for row in sorted(found)}
    return sorted(newest.values())


def _rows_of(path: Path) -> Iterator[Row]:
    written = json.loads(path.read_text())
    for result in written["results"]:
        if "headline" not in result:
            continue
        if "not_measured" in result:
            raise ValueError(f"{path.name}: '{result['name']}' has a headline but was not measured")
        headline, header = result["headline"], written["header"]
        yield Row(
            _text(path, header, "date")[:10],
            *(_text(path, headline, key) for key in ("what", "figure", "against")),
            _text(path, header, "device"),
            _text(path, header, "commit")[:7],
            path.name,
        )


def _text(path: Path, holder: dict[str, Any], key: str) -> str:
    value = holder.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{path.name}: a figure in README needs '{key}', a text that is not empty; got {value!r}")
    return value.replace("|", "\\|")


def table(found: list[Row]) -> str:
    """Return the rows as Markdown, each linked to its file; nothing for none."""
    if not found:
        return ""
    lines = ["| what | figure | against | device | date | commit |", "|---|---|---|---|---|---|"]
    for row in found:
        what = f"[{row.what}](benchmarks/results/{row.file})"
        lines.append(f"| {what} | {row.figure} | {row.against} | {row.device} | {row.date} | {row.commit} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, text: str) -> str:
    """Return the page with `text` between its two marks."""
    before, _, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md has no place for the results: expected {START.strip()} and {END.strip()}")
    return before + START + text + END + after


if __name__ == "__main__":
    try:
        README.write_text(with_table(README.read_text(), table(rows(RESULTS))))
    except ValueError as error:
        sys.exit(f"scripts/results_table.py: {error}")
