"""From committed results to pages: `docs/benchmarks.md` as a whole, and every place that a page keeps for a table.

A place is between `<!-- bench: NAME -->` and `<!-- bench end -->`, each on a line of its own; NAME is an op, or
`headlines`. What is there is replaced.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fgrpo_kernels.bench import headlines, plots, tables
from fgrpo_kernels.bench.ops import OPS
from fgrpo_kernels.bench.results import Record, by_age, load

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/benchmarks.md")
PLOTS = Path("docs/plots")
PLACE = re.compile(r"^(<!-- bench: (\S+) -->\n)(.*?)^(<!-- bench end -->)$", re.MULTILINE | re.DOTALL)

_INTRODUCTION = """# Benchmarks

Written by `python -m fgrpo_kernels.bench report` from [benchmarks/results](../benchmarks/results/README.md).

    make bench                                       # every op on this machine, in about 15 minutes
    python -m fgrpo_kernels.bench list               # ops, their cases and contenders, and which of them are here
    python -m fgrpo_kernels.bench grpo_loss --rows 8192 --model qwen3-8b --against eager,compile,trl,liger
    python -m fgrpo_kernels.bench compare A B        # two files or folders: faster or slower; ratios again or not

To repeat a figure: the command beside it below, then `compare` with the file that it links to and the one that is
written. Of ours it says faster, slower, or the same (within 25%, scatter included), where it has taken out what the
machine did: by how much the other contenders' times moved. Of a ratio it says larger, smaller, or found again (within
20%). An interval too wide for any of these gives: cannot tell. A ratio may move though the medians do not: on the
machines used so far, what needs much memory bandwidth (our mean, our encoder) runs at one of two speeds for seconds or
minutes, we think by other tenants' traffic.

`python` is the environment's (`source .venv/bin/activate`); `--only WORD` takes the cases with a word in their names.
Rivals that are not installed are named with the command that installs them; all of them: `pip install -e '.[bench]'`.

Every contender is checked first, and not timed if it is wrong. Then it is timed in turns with ours: a machine's speed
changes within seconds, so "times as long" is the median of these pairs, and not a quotient of two medians. A turn of
something short begins with a call that is not timed, so that each finds the caches as it left them itself. In brackets
is where that median lies, a 95% interval by the bootstrap over the pairs of this run, within seconds: on a machine that
others share, runs minutes apart may differ by more ([log](log.md)). ± is half the range of ours. The limit is what the
bytes that must move take at the bandwidth of a copy, or the products that must be made at the rate of a large one,
whichever is longer; both are measured in the same run, just before. More than 100% means that a part came from the
caches. Memory is the most that a call holds beyond its inputs, its result included. What is freed stays with the
process, so that a contender that allocates its result writes to memory in use as well: by default glibc gives large
blocks back, and the system zeroes new ones for each call.
`eager` is plain PyTorch as trainers write it, `compile` the same under torch.compile, `fbgemm` what torch has inside;
other forms of theirs, named after a comma, are there where they are faster.
"""


def write(root: Path) -> list[Path]:
    """Bring the pages and the plots under `root` up to date; return the pages that changed.

    Raises:
        ValueError: if this is no repository of this project, or a page has a place for something unknown.
    """
    changed = []
    for path, text in pages(root).items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    plots.draw(load([_results(root)]), root / PLOTS)
    return changed


def pages(root: Path) -> dict[Path, str]:
    """The pages that have something from the results, as they should be."""
    site = Site(root, load([_results(root)]))
    found = {root / PAGE: site.whole_page(root / PAGE)}
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = path.read_text()
        if path not in found and PLACE.search(text):
            found[path] = PLACE.sub(lambda place, p=path: site.filled(place, p), text)  # type: ignore[misc]
    return found


@dataclass(frozen=True)
class Site:
    """Files of results, and where the pages about them are: links are relative to a page's place."""

    root: Path
    contents: Mapping[Path, Record]

    def whole_page(self, page: Path) -> str:
        parts = [_INTRODUCTION]
        if table := self.headlines(page):
            parts.append(f"## The figures at a glance\n\n{table}")
        if rounds := plots.of_op("round", self.contents):
            parts += ["## A round's stages\n", *(self._picture(picture, page) for picture in rounds)]
        for op in OPS:
            about = importlib.import_module(f"fgrpo_kernels.bench.ops.{op}").__doc__ or ""
            parts.append(f"## {op}\n\n{about.strip()}\n\n{self.section(op, page)}")
        return "\n".join(parts)

    def section(self, op: str, page: Path) -> str:
        """The newest results of an op on each device."""
        parts = [f"{tables.where(content)}\n\n{tables.table(content)}" for content in self._newest(op)]
        parts += [self._picture(picture, page) for picture in plots.of_op(op, self.contents)]
        return "\n".join(parts) or f"Not measured yet: `python -m fgrpo_kernels.bench {op}`.\n"

    def headlines(self, page: Path) -> str:
        return headlines.table(headlines.rows(self.contents), _link(self.root / RESULTS, page))

    def filled(self, place: re.Match[str], page: Path) -> str:
        """A place with its two marks."""
        start, name, _, end = place.groups()
        if name == "headlines":
            return f"{start}{self.headlines(page)}{end}"
        if name not in OPS:
            raise ValueError(f"{page}: a place for '{name}', expected headlines, {', '.join(OPS)}")
        return f"{start}{self.section(name, page)}{end}"

    def _newest(self, op: str) -> list[Record]:
        """By the device's name."""
        last = {c["header"]["device"]: c for _, c in by_age(self.contents) if c.get("op") == op}
        return [last[device] for device in sorted(last)]

    def _picture(self, picture: plots.Picture, page: Path) -> str:
        return f"![{picture.title}]({_link(self.root / PLOTS / picture.file, page)})\n"


def _link(target: Path, page: Path) -> str:
    return Path(os.path.relpath(target, page.parent)).as_posix()


def _results(root: Path) -> Path:
    folder = root / RESULTS
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: run this in the repository, or name files to print a page of")
    return folder
