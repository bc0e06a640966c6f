"""The delta codec's machine code rounds as C++ does: no fused operation, nothing flushed, exact division."""

import re

import pytest

from fgrpo_kernels.jit import HAS_TRITON, INTERPRETED

if not HAS_TRITON or INTERPRETED:
    pytest.skip("needs Triton's compiler", allow_module_level=True)

from ahead_of_time import TARGETS, codec_variants, compiled_code

NVIDIA = [name for name in TARGETS if name.startswith("sm_")]
CASES = [pytest.param(i, id=variant.name) for i, variant in enumerate(codec_variants("sm_90"))]


def float32_operations(ptx: str) -> set[str]:
    """Kinds of arithmetic in the code; a pair of numbers (x2, on sm_100) is rounded like two."""
    pattern = r"^\s*(?:@\S+\s+)?((?:add|sub|mul|mad|fma|div|rcp|ex2)\.\S*f32)(?:x2)?\s"
    return set(re.findall(pattern, ptx, re.MULTILINE))


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("index", CASES)
def test_nvidia_rounds_every_operation_once(index, target):
    ptx = compiled_code(list(codec_variants(target))[index], TARGETS[target])["ptx"]
    operations = float32_operations(ptx)
    assert operations
    # `.rn` also forbids the assembler to contract; without `.ftz` subnormals are numbers.
    assert operations <= {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32"}
    assert ".ftz" not in ptx


def test_without_the_option_operations_are_fused():
    stochastic = next(variant for variant in codec_variants("sm_90") if "stochastic" in variant.name)
    fused = compiled_code(stochastic._replace(fp_fusion=True), TARGETS["sm_90"])["ptx"]
    assert not float32_operations(fused) <= {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32"}


@pytest.mark.parametrize("index", CASES)
def test_amd_rounds_every_operation_once(index):
    code = compiled_code(list(codec_variants("gfx942"))[index], TARGETS["gfx942"])["amdgcn"]
    fused = re.findall(r"^\s*v_(?:pk_)?(?:fma|fmac|mac|mad)_f32\S*", code, re.MULTILINE)
    divisions = re.findall(r"^\s*v_div_fixup_f32", code, re.MULTILINE)
    assert len(fused) == 5 * len(divisions), "an exact division has five; there are others"
    assert "amdhsa_float_denorm_mode_32 3" in code
    assert "amdhsa_float_round_mode_32 0" in code


@pytest.mark.parametrize(
    "index", [case for case in CASES if re.search("residual|decode", str(case.id)) and "search" not in str(case.id)]
)
def test_float32_is_written_16_bytes_at_a_time(index):
    variant = list(codec_variants("sm_90"))[index]
    ptx = compiled_code(variant, TARGETS["sm_90"])["ptx"]
    assert re.search(r"st\.global\S*\.v4\.b32", ptx)
