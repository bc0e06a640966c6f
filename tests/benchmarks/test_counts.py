"""What calls, loops and training steps cost has not changed unseen: counts beside those in counts.json."""

import json
import shutil

import counts
import pytest

AT_MOST = 0.05  # of a count, either way
COMMITTED = json.loads(counts.COUNTS.read_text())


def moved(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """A line for each count that is new, gone, or changed by more than is allowed."""
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in before | after
        if name not in before or name not in after or abs(after[name] - before[name]) > AT_MOST * before[name]
    ]


def require_unmoved(name: str, after: dict[str, float]) -> None:
    assert moved(COMMITTED[name], after) == [], (
        "if this is meant: python tests/benchmarks/counts.py, and commit counts.json"
    )


def test_the_codecs_loops():
    missing = [tool for tool in ("nm", "objdump", "readelf") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    name = f"loops, {counts.compiler()}"
    if name not in COMMITTED:
        pytest.skip(f"counts.json has no {name}: python tests/benchmarks/counts.py adds it")
    require_unmoved(name, counts.loops())


def test_a_kernels_call_on_the_host():
    require_unmoved("calls", counts.calls())


def test_the_loops_positions():
    require_unmoved("loop", counts.loop())


@pytest.mark.parametrize(
    ("after", "number"),
    [
        pytest.param({"a": 104, "b": 10}, 0, id="by less"),
        pytest.param({"a": 94, "b": 10}, 1, id="fewer"),
        pytest.param({"a": 106, "b": 11}, 2, id="more"),
        pytest.param({"a": 100}, 1, id="gone"),
        pytest.param({"a": 100, "b": 10, "c": 0}, 1, id="new"),
    ],
)
def test_what_moved_is_found(after, number):
    assert len(moved({"a": 100, "b": 10}, after)) == number


def test_only_innermost_loops_count():
    code = [(0, None), (1, None), (2, 1), (3, None), (4, 0), (5, 6), (6, None), (7, 100)]
    assert counts._in_innermost_loops(code) == 2  # 1 and 2: the loop from 0 to 4 holds another, the rest jump forwards
