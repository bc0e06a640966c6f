"""Triton's own way from a call to a compiled kernel, its binder and its specialisation, for a device that is not here.

The ops' host code runs as on a GPU, on tensors of the CPU, up to the launch, which compiles and goes no further.
"""

import sys
from types import SimpleNamespace

import pytest
import torch

from fgrpo_kernels.jit import HAS_TRITON, INTERPRETED

if not HAS_TRITON or INTERPRETED:
    pytest.skip("needs Triton's compiler, which TRITON_INTERPRET=1 replaces", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fgrpo_kernels import PPOClip, dispatch, group_advantages, grpo_loss, token_logprobs
from fgrpo_kernels.codec import gpu as delta_codec
from fgrpo_kernels.codec.gpu_blocks import decode_kernel
from fgrpo_kernels.gpu.group_advantages import group_advantages_kernel
from fgrpo_kernels.gpu.loss_kernel import grpo_loss_kernel
from fgrpo_kernels.gpu.policy_kernels import live_rows_kernel, policy_terms_kernel
from fgrpo_kernels.gpu.token_logprobs import token_logprobs_backward_kernel, token_logprobs_kernel


def as_on_a_gpu(monkeypatch):
    """CPU tensors take the kernels, and nobody looks at their values."""
    monkeypatch.setattr(dispatch, "DEVICES", {"cpu"})
    for name in ("checks", "layout", "grpo_loss", "group_advantages"):
        monkeypatch.setattr(sys.modules[f"fgrpo_kernels.{name}"], "can_look_at", lambda x: False)


@pytest.fixture
def compiled(monkeypatch):
    """How many variants of a kernel there are, on an H100 as far as a launch asks for it."""
    hopper = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    monkeypatch.setattr(driver, "_active", hopper)
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        return run(self, *args, grid=grid, warmup=True, **options)

    monkeypatch.setattr(JITFunction, "run", compile_only)
    as_on_a_gpu(monkeypatch)
    return lambda kernel: len(kernel.device_caches[0][0])


def losses(T, vocabulary, level):
    logits = torch.zeros(2, T, vocabulary, dtype=torch.bfloat16, requires_grad=True)
    weights, targets = torch.ones(2, T), torch.zeros(2, T, dtype=torch.int64)
    grpo_loss(logits, targets, torch.ones(2), weights, objective=PPOClip(level=level)).loss.backward()


@pytest.mark.parametrize(
    ("level", "kernels"),
    [
        pytest.param("token", [grpo_loss_kernel, policy_terms_kernel], id="token"),
        pytest.param(
            "sequence",
            [token_logprobs_kernel, token_logprobs_backward_kernel, live_rows_kernel, policy_terms_kernel],
            id="sequence",
        ),
    ],
)
def test_a_new_length_compiles_nothing(level, kernels, compiled):
    losses(16, 4096, level)
    before = [compiled(kernel) for kernel in kernels]
    assert min(before) >= 1
    for T in (17, 31, 32, 100):
        losses(T, 4096, level)
    assert [compiled(kernel) for kernel in kernels] == before


def test_strided_logits_are_the_same_kernel(compiled):
    def score(rows):
        token_logprobs(torch.zeros(2, rows + 1, 4096)[:, :-1], torch.zeros(2, rows, dtype=torch.int64))

    score(3)
    before = compiled(token_logprobs_kernel)
    score(16)
    assert compiled(token_logprobs_kernel) == before


def test_as_many_rewards_as_there_may_be_are_one_kernel(compiled):
    for rows in (16, 24, 800):
        group_advantages(torch.zeros(rows), 8)
    assert compiled(group_advantages_kernel) == 1


def test_a_delta_of_any_size_is_decoded_by_one_kernel(compiled):
    for size in (1, 16, 999, 4096):
        rows = -(-size // 64)
        codes, scales = torch.zeros(32 * rows, dtype=torch.uint8), torch.zeros(rows, dtype=torch.bfloat16)
        delta_codec.decode(codes, scales, "int4", 64, torch.empty(size))
    assert compiled(decode_kernel) == 1


@pytest.mark.parametrize(
    ("call", "limit"),
    [
        pytest.param(lambda: group_advantages(torch.zeros(64), 8), 40, id="group_advantages"),
        pytest.param(lambda: losses(4, 64, "token"), 205, id="grpo_loss, token level"),
        pytest.param(lambda: losses(4, 64, "sequence"), 245, id="grpo_loss, sequence level"),
    ],
)
def test_host_work_of_a_call(call, limit, monkeypatch):
    """Python functions entered, launches apart: for small batches the host's time is the whole of it."""
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **options: None)
    call()  # what is looked up once
    entered = []
    sys.setprofile(lambda frame, event, argument: entered.append(frame.f_code) if event == "call" else None)
    try:
        call()
    finally:
        sys.setprofile(None)
    assert len(entered) <= limit
