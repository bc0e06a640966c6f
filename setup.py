"""Builds the extension fgrpo_kernels._C from csrc/ with CMake and Ninja, and an index's page from README.md.

Everything else is in pyproject.toml.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file())


def find_tool(name: str) -> str:
    """The path of a build tool: beside this Python (a virtual environment, a pip build), else on PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    if found is None:
        raise SystemExit(f"error: building fgrpo needs {name}: pip install {name}")
    return found


def pybind11_include() -> str:
    try:
        import pybind11
    except ImportError:
        raise SystemExit("error: building fgrpo needs pybind11: pip install pybind11") from None
    return str(pybind11.get_include())


def require_compiler() -> None:
    """One clear line instead of CMake's pages, where there is no C++ compiler."""
    compiler = os.environ.get("CXX", "").split()
    if not any(shutil.which(name) for name in [*compiler[:1], "c++", "g++", "clang++"]):
        raise SystemExit("error: building fgrpo needs a C++20 compiler (g++ 11, clang++ 14 or newer) on PATH or in CXX")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        require_compiler()
        build = Path(self.build_temp).resolve() / "csrc"
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        configure = [
            *(cmake, "-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            "-DFGRPO_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPYBIND11_INCLUDE_DIR={pybind11_include()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build}",
        ]
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build), "--target", "_C"], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"error: building fgrpo_kernels._C failed, see above ({error})") from None
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)


def index_page(readme: str, repository: str | None) -> str:
    """README.md for a package index, where the repository's files are not beside it.

    Links to them lead to `repository`; where none is named in pyproject.toml, the links' texts stay and pictures go.
    """

    def elsewhere(match: re.Match[str]) -> str:
        picture, text, path = match.groups()
        if repository is None:
            return "" if picture else text
        return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/main/{path})"

    prose_and_code = re.split(r"(^```.*?^```)", readme, flags=re.MULTILINE | re.DOTALL)
    link = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
    return "".join(part if i % 2 else link.sub(elsewhere, part) for i, part in enumerate(prose_and_code))


def repository() -> str | None:
    named = re.search(r'^Repository = "(.*?)/?"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return named[1] if named else None


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("fgrpo_kernels._C", SOURCES)],  # listed so that source distributions hold the sources
        cmdclass={"build_ext": CMakeBuild},
        long_description=index_page((ROOT / "README.md").read_text(encoding="utf-8"), repository()),
        long_description_content_type="text/markdown",
    )
