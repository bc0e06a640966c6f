"""Kernels for devices that are not here: they compile, spill nothing, load 16 bytes at a time, and stay in budget."""

from functools import cache

import pytest

from fgrpo_kernels.jit import HAS_TRITON, INTERPRETED

if not HAS_TRITON or INTERPRETED:
    pytest.skip("needs Triton's compiler, which TRITON_INTERPRET=1 replaces", allow_module_level=True)

import torch
import triton
from ahead_of_time import COMMITTED, TARGETS, Resources, compile_variant, table, variants
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from fgrpo_kernels.gpu.launch_table import tile_for
from fgrpo_kernels.gpu.token_logprobs import rows_of, token_logprobs_kernel

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


@pytest.mark.parametrize("vocab", [4096, 50_257, 151_936])
def test_a_new_length_is_the_same_kernel(vocab):
    """What the launcher specialises on: types, and which integers are 1 or divisible by 16."""
    backend = make_backend(TARGETS["sm_90"])
    specialise = create_function_from_signature(token_logprobs_kernel.signature, token_logprobs_kernel.params, backend)
    keys = set()
    for T in (16, 17, 31, 32, 48, 100):
        logits, targets = torch.empty(2, T, vocab, dtype=torch.bfloat16), torch.zeros(2 * T, dtype=torch.int64)
        outputs = [torch.empty(2 * T) for _ in range(4)]
        _, specialisation, options = specialise(
            *rows_of(logits), targets, None, *outputs, vocab, 1.0, **tile_for(logits, vocab, "scan").arguments()
        )
        keys.add((str(specialisation), str(sorted(options.items()))))
    assert len(keys) == 1


def test_committed_table_is_up_to_date():
    made_with = f"Triton {triton.__version__}"
    committed = COMMITTED.read_text()
    if not committed.startswith(f"kernel by {made_with},"):
        pytest.skip(f"registers differ between compilers: the committed table was not made with {made_with}")
    names = [v.name for v in variants("sm_90")]
    assert table(lambda variant, target: resources(names.index(variant.name), target)) == committed, (
        "a kernel's resources have changed: run python tests/kernels/ahead_of_time.py"
    )
