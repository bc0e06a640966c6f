"""The candidates of the sweep compile for an H100 and spill nothing; the table has what they should take."""

from functools import cache

import pytest

from fgrpo_kernels.jit import HAS_TRITON, INTERPRETED

if not HAS_TRITON or INTERPRETED:
    pytest.skip("needs Triton's compiler, which TRITON_INTERPRET=1 replaces", allow_module_level=True)

import csv

import ahead_of_time
import triton
from ahead_of_time import TARGETS, candidate_variants, compile_variant
from predictions import COMMITTED, table


@cache
def resources(index):
    _, variant = list(candidate_variants())[index]
    return compile_variant(variant, TARGETS["sm_90"])


NAMES = [f"{kind}: {variant.name}" for kind, variant in candidate_variants()]


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_candidates_spill_nothing(index):
    found = resources(index)
    assert found.spilled_bytes == 0
    assert found.access_bytes == 16


def test_committed_table_is_up_to_date():
    if not ahead_of_time.COMMITTED.read_text().startswith(f"kernel by Triton {triton.__version__},"):
        pytest.skip("registers differ between compilers: the committed table was made with another")
    found = iter(range(len(NAMES)))
    assert table(lambda variant: resources(next(found))) == COMMITTED.read_text(), (
        "a candidate or its registers have changed: run python tests/kernels/predictions.py"
    )


def test_a_copy_is_the_limit():
    """No prediction is faster than the bytes that must move."""
    pass_ms = 1e3 * 8192 * 151_936 * 2 / 3.0e12
    with COMMITTED.open() as file:
        for row in csv.DictReader(file):
            passes = 1 if row["kind"] == "scan" else 2
            assert passes * pass_ms <= float(row["ms_if_l2_holds_the_rows"]) <= 3 * passes * pass_ms
