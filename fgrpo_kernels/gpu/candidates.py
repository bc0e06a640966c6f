"""What the row kernels could be launched with instead of the table's choice: worth timing, until a GPU has.

`benchmarks/gpu_sweep.py` measures them. Each compiles for sm_90 without a spilled register, and has a predicted time in
`tests/kernels/predicted_times.csv`.
"""

from __future__ import annotations

from fgrpo_kernels.gpu.launch_table import Choice, Kind

# Rows of a block of the LM head: more are fewer passes over the weight's gradient, and more memory.
HEAD_ROWS = (768, 1024, 1536, 2048)


def _named(*choices: Choice) -> dict[str, Choice]:
    return {name_of(choice): choice for choice in choices}


def name_of(choice: Choice) -> str:
    """What a table calls it."""
    words = [f"{choice.warps} warps x {choice.parts}", choice.again or "no policy"]
    words += [f"hold {choice.hold}"] if choice.hold else []
    words += [f"{choice.stages} stages"] if choice.stages else []
    words += ["early terms"] if choice.early else []
    words += [f"overlapped, {choice.programs} a multiprocessor"] if choice.programs else []
    return ", ".join(words)


_LAST = "evict_last"
# The first of each is the table's.
CANDIDATES: dict[Kind, dict[str, Choice]] = {
    "scan": _named(
        Choice(16, 4),
        Choice(8, 4),
        Choice(4, 4),
        Choice(8, 2),
        Choice(16, 2),
        Choice(16, 4, again=""),
        Choice(16, 4, again=_LAST),
        Choice(8, 4, stages=3),
        Choice(16, 2, stages=3),
    ),
    "write": _named(
        Choice(16, 4),
        Choice(8, 4),
        Choice(4, 4),
        Choice(8, 2),
        Choice(8, 4, stages=3),
    ),
    "loss": _named(
        Choice(32, 2, _LAST),
        Choice(32, 2, _LAST, early=True),
        Choice(32, 2, "", early=True),
        Choice(32, 1, _LAST, early=True),
        Choice(16, 2, _LAST, early=True),
        Choice(16, 2, _LAST, hold=4, early=True),
        Choice(16, 2, _LAST, hold=2, early=True),
        Choice(16, 2, _LAST, stages=3, early=True),
        Choice(32, 1, _LAST, programs=1),
        Choice(16, 2, _LAST, programs=1),
        Choice(16, 1, _LAST, programs=1),
        Choice(8, 2, _LAST, programs=2),
    ),
}
