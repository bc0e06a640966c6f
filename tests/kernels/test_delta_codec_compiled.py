"""The delta codec's machine code rounds as C++ does, and takes no longer than memory: no fused operation, nothing
flushed, exact division; instructions a value.
"""

import re

import pytest

from fgrpo_kernels.jit import HAS_TRITON, INTERPRETED

if not HAS_TRITON or INTERPRETED:
    pytest.skip("needs Triton's compiler, which TRITON_INTERPRET=1 replaces", allow_module_level=True)

from ahead_of_time import TARGETS, codec_variants, compiled_code, instructions

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


@pytest.mark.parametrize(
    ("name", "bytes_a_value"),
    [
        ("encode int8, block 64, fp32", 5),
        ("encode int4, block 64, fp32", 4.5),
        ("encode int2, block 64, fp32", 4.25),
        ("encode int4, block 64, fp32, stochastic", 4.5),
        ("decode int4, block 64", 4.5),
    ],
)
def test_an_h100_takes_longer_for_the_bytes(name, bytes_a_value):
    """The table of docs/codec_gpu.md: a thread's instructions up to the end of a whole tile, by its values."""
    variant = next(v for v in codec_variants("sm_90") if v.name == f"delta codec, {name}")
    code = list(instructions(compiled_code(variant, TARGETS["sm_90"])["cubin"]).values())
    values = variant.constants["ROWS"] * variant.constants["BLOCK"] / (32 * variant.num_warps)
    cost = next(i for i, text in enumerate(code) if text.startswith("EXIT")) / values
    # 132 processors of 128 lanes at 1.755 GHz, and 3.0 TB/s; a scale is two bytes a block.
    budget = 132 * 128 * 1.755e9 * (bytes_a_value + 2 / 64) / 3.0e12
    print(f"{name}: {cost:.0f} of {budget:.0f}")
    assert cost <= budget
