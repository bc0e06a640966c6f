"""What each candidate of `fgrpo_kernels/gpu/candidates.py` should take on an H100, from what it compiles to.

    python tests/kernels/predictions.py

writes `predicted_times.csv` again, which `test_predictions.py` compares. Nothing of it was measured on a GPU: it is
there to be held against a measurement. Rows: 8192 of 151,936 bfloat16 logits.

The model: a program moves at most its bytes in flight per latency, and nothing while a row begins and ends; the
programs of a multiprocessor share its part of the memory's bandwidth; a pass takes at least what its instructions take;
and what does not fill the last wave of programs takes a row's own time.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from ahead_of_time import TARGETS, Resources, Variant, candidate_variants, compile_variant

from fgrpo_kernels.gpu.candidates import CANDIDATES
from fgrpo_kernels.gpu.launch_table import ACCESS_BYTES, Choice, Kind

COMMITTED = Path(__file__).with_name("predicted_times.csv")

ROWS, COLUMNS, BYTES = 8192, 151_936, 2
MULTIPROCESSORS = 132
BANDWIDTH = 3.0e12  # bytes a second of a copy on an H100, read and written bytes both counted
LATENCY = 0.7e-6  # seconds of a load from memory
LANE_INSTRUCTIONS = 132 * 4 * 32 * 1.7e9  # a second
REGISTERS, THREADS, PROGRAMS = 65_536, 2048, 32  # of a multiprocessor
# Seconds in which a program moves nothing: a chain of five loads or two, the reductions over the row, the launch.
GAP = {"chained": 4.0e-6, "early": 2.0e-6, "overlapped": 0.0}
READ, WRITTEN = {"scan": 1, "write": 1, "loss": 1}, {"scan": 0, "write": 1, "loss": 1}


def resident(choice: Choice, registers: int) -> int:
    """Programs that are on a multiprocessor at a time."""
    threads = 32 * choice.warps
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    fitting = max(1, min(THREADS // threads, by_registers, PROGRAMS))
    return min(fitting, choice.programs) if choice.programs else fitting


def l2_bytes(choice: Choice, programs: int) -> float:
    """What is read again of all rows in flight, and should still be in L2 then."""
    held = choice.hold * choice.warps * 32 * choice.parts * ACCESS_BYTES
    return MULTIPROCESSORS * programs * (COLUMNS * BYTES - held)


def seconds(kind: Kind, choice: Choice, found: Resources, hits: float) -> float:
    """Of the whole kernel; `hits`: the share of the second reads that L2 answers."""
    programs = resident(choice, found.registers)
    row = COLUMNS * BYTES
    again = (1 - choice.hold * choice.warps * 32 * choice.parts * 8 / COLUMNS) * (1 - hits) if kind == "loss" else 0.0
    moved = row * (READ[kind] + WRITTEN[kind] + again)
    share = BANDWIDTH / MULTIPROCESSORS
    loads = max(1, (choice.stages or 2) - 1) * (2 if choice.programs else 1)  # overlapped: of two rows
    in_flight = choice.warps * 32 * choice.parts * ACCESS_BYTES * loads
    gap = GAP["overlapped" if choice.programs else "early" if choice.early or kind != "loss" else "chained"]
    alone = moved / min(share, in_flight / LATENCY) + gap
    instructions = COLUMNS * sum(cost[0] for cost in (found.read, found.write) if cost is not None)
    computed = instructions * MULTIPROCESSORS / LANE_INSTRUCTIONS
    together = max(moved / share, alone / programs, computed)  # a row's time, of all that are in flight
    waves, left = divmod(ROWS, MULTIPROCESSORS * programs)
    last = max(left * moved / BANDWIDTH, alone if left else 0.0)
    return waves * programs * together + last


def table(resources: Callable[[Variant], Resources]) -> str:
    """What `predicted_times.csv` holds."""
    head = ("kind", "choice", "registers", "programs", "shared_l2_mb", "ms_if_l2_holds_the_rows", "ms_if_not")
    lines: list[tuple[object, ...]] = [head]
    for kind, variant in candidate_variants():
        choice, found = CANDIDATES[kind][variant.name], resources(variant)
        programs = resident(choice, found.registers)
        again = round(l2_bytes(choice, programs) / 1e6, 1) if kind == "loss" else ""
        times = [f"{1e3 * seconds(kind, choice, found, hits):.2f}" for hits in (1.0, 0.0)]
        lines.append((kind, variant.name, found.registers, programs, again, *times[: 2 if kind == "loss" else 1]))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


if __name__ == "__main__":
    COMMITTED.write_text(table(lambda variant: compile_variant(variant, TARGETS["sm_90"])))
