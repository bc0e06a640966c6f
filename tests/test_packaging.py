"""What is built from the repository is whole: a wheel holds each file of the packages, a source distribution all."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fgrpo

ROOT = Path(__file__).parents[1]


def files(folder: Path) -> set[str]:
    """What lies under a folder, by its path from there, without what building and running leaves."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".so", ".pyc")]
    return {str(path.relative_to(folder)) for path in paths}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel's Python files and data, and the list of the source distribution's files."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "build_py", "--build-lib", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("package", ["fgrpo", "fgrpo_kernels"])
def test_the_wheel_holds_every_file_of_the_packages(built, package):
    assert files(ROOT / package) == files(built / package)


def test_the_source_distribution_holds_the_repository(built):
    listed = set((built / "fgrpo.egg-info" / "SOURCES.txt").read_text().splitlines())
    folders = ("benchmarks", "configs", "csrc", "docs", "examples", "fgrpo", "fgrpo_kernels", "scripts", "tests")
    wanted = {f"{folder}/{file}" for folder in folders for file in files(ROOT / folder)}
    wanted |= {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "setup.py"}
    assert wanted - listed == set()


def test_the_index_page_has_no_link_that_only_works_here(built):
    page = (built / "fgrpo.egg-info" / "PKG-INFO").read_text()
    assert f"Version: {fgrpo.__version__}\n" in page
    assert "Description-Content-Type: text/markdown" in page
    assert page.count("```python") == (ROOT / "README.md").read_text().count("```python")
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL))
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


@pytest.mark.parametrize(
    ("repository", "page"),
    [
        (
            "https://host/us/fgrpo",
            "![a](https://host/us/fgrpo/raw/main/docs/a.png) [b](https://host/us/fgrpo/blob/main/docs/b.md#c)",
        ),
        (None, " b"),
    ],
    ids=["repository", "none"],
)
def test_links_of_the_index_page(repository, page):
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    setup_script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup_script)
    kept = " [p](https://arxiv.org) [h](#here)\n```\nx[0](y)\n```\n"
    assert setup_script.index_page("![a](docs/a.png) [b](docs/b.md#c)" + kept, repository) == page + kept
