"""What pages and comments point to is there: files and headings they link to, and the repository's paths they name."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "configs", "csrc", "docs", "examples", "fgrpo", "fgrpo_kernels", "scripts", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
SOURCES = [
    path
    for folder in FOLDERS[:-1]  # tests make up paths of their own
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".h", ".cpp", ".sh", ".yaml")
]
# A page may speak from inside a package: `gpu/softcap.py`. Other projects' paths, `trl/x.py`, are not ours to check.
STARTS = [ROOT, ROOT / "fgrpo", ROOT / "fgrpo_kernels", ROOT / "tests"]
INSIDE = {path.name for start in STARTS[1:] for path in start.iterdir() if path.is_dir()}
PATH = re.compile(
    rf"(?<![\w./-])(?:(?:{'|'.join(FOLDERS)})/[\w./<>*-]*\w|(?:{'|'.join(INSIDE)})/[\w./<>*-]+\.(?:py|h|cpp)\b)"
)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")


def links(page: str) -> Iterator[str]:
    prose = re.sub(r"`[^`]*`", "", FENCED.sub("", page))
    for match in LINK.finditer(prose):
        yield match[1] or match[2]


def anchors(page: str) -> set[str]:
    """What a link to a heading ends with: its words in lower case with hyphens between, numbered from the second on."""
    found: Counter[str] = Counter()
    for heading in re.findall(r"^#+ +(.+)$", FENCED.sub("", page), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)  # of a link its text
        found[re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")] += 1
    return {slug if i == 0 else f"{slug}-{i}" for slug, count in found.items() for i in range(count)}


def dead_links(page: str, folder: Path) -> list[str]:
    """The links of a page in `folder` to a file, or to a heading of a page, that is not there."""
    found = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue  # another site's
        name, _, anchor = link.partition("#")
        target = folder / name
        if (name and not target.exists()) or (anchor and anchor not in anchors(target.read_text() if name else page)):
            found.append(link)
    return found


def missing_paths(page: str) -> list[str]:
    """The paths in the page that are not in the repository; of a pattern (`<name>`, `*`) the folder must be."""
    found = []
    for path in PATH.findall(page):
        certain = re.sub(r"[^/]*[<*].*", "", path)
        if not any((start / certain).exists() for start in STARTS):
            found.append(path)
    return found


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_what_a_page_points_to_is_there(page):
    text = page.read_text()
    assert dead_links(text, page.parent) == []
    assert missing_paths(text) == []


def test_paths_in_sources_are_there():
    missing = {str(path.relative_to(ROOT)): missing_paths(path.read_text()) for path in SOURCES}
    assert {path: paths for path, paths in missing.items() if paths} == {}


def test_dead_links_are_found():
    page = """
# What is `here`, and [there](docs)
## Twice
[page](docs/codec.md) [heading](docs/codec.md#error-feedback) [own](#what-is-here-and-there) [site](https://a.b/c.md#d)
## Twice
[second](#twice-1) `[code](is/no.link)`

    [gone](docs/gone.md) [no heading](docs/codec.md#gone) [none here](#gone) [third](#twice-2) ![picture](docs/gone.png)
```
# [fenced](code.is)
```
"""
    assert dead_links(page, ROOT) == ["docs/gone.md", "docs/codec.md#gone", "#gone", "#twice-2", "docs/gone.png"]


@pytest.mark.parametrize(
    "page",
    [
        "`fgrpo/gone.py`",
        "`tests/kernels/gone`",
        "`docs/gone/<name>.md`",
        "`gpu/gone.py`",
        "```sh\npython benchmarks/gone.py --out=/tmp\n```",
        "[benchmarks/gone.py](https://elsewhere.org)",
    ],
)
def test_missing_paths_are_found(page):
    assert len(missing_paths(page)) == 1


def test_paths_that_are_there_pass():
    page = "`fgrpo/cli.py`, tests/kernels/, `tests/test_*.py`, `docs/<name>.md`; gpu/softcap.py. trl/gone.py runs/docs"
    assert missing_paths(page) == []
