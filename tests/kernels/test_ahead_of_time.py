"""Kernels for devices that are not here: they compile, spill nothing, load 16 bytes at a time, and stay in budget."""

from functools import cache
from pathlib import Path

import pytest

from fgrpo_kernels.jit import HAS_TRITON, INTERPRETED

if not HAS_TRITON or INTERPRETED:
    pytest.skip("needs Triton's compiler", allow_module_level=True)

import triton
from ahead_of_time import TARGETS, Resources, compile_variant, table, variants

COMMITTED = Path(__file__).parents[2] / "docs" / "kernel_resources.md"
# Lane-instructions and special-function operations a logit at 3.0 TB/s on an H100 (bfloat16, read pass).
READ_BUDGET = (20, 2.4)


@cache
def resources(index: int, target: str) -> Resources:
    return compile_variant(list(variants(target))[index], TARGETS[target])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("index", [pytest.param(i, id=v.name) for i, v in enumerate(variants("sm_90"))])
def test_compiles_within_its_means(index, target):
    variant = list(variants(target))[index]
    found = resources(index, target)
    assert found.spilled_bytes == 0
    if variant.vocab:
        assert found.access_bytes == 16
    if target == "sm_90" and variant.vocab and variant.dtype != "fp32":
        for cost, passes in ((found.read, 1), (found.write, 2)):
            assert cost is None or (cost[0] <= passes * READ_BUDGET[0] and cost[1] <= passes * READ_BUDGET[1])
        assert found.read or found.write, "no loop over the row was found in the machine code"


def test_committed_table_is_up_to_date():
    made_with = f"Triton {triton.__version__}"
    committed = COMMITTED.read_text()
    if made_with + "," not in committed:
        pytest.skip(f"the committed table was not made with {made_with}")
    names = [v.name for v in variants("sm_90")]
    assert table(lambda variant, target: resources(names.index(variant.name), target)) == committed, (
        "a kernel's resources have changed: run python tests/kernels/ahead_of_time.py > docs/kernel_resources.md"
    )
