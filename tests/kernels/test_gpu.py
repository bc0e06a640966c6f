"""What only a GPU can show: the kernels as compiled, launched on real devices and at sizes past 32-bit offsets."""

import pytest
import torch
from sizes import MADE_UP, fitting

from fgrpo_kernels import (
    CISPO,
    GMPO,
    SAPO,
    VESPO,
    PPOClip,
    group_advantages,
    grpo_loss,
    reference,
    token_logprobs,
    token_weights,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


def gradient_and_outputs(op, logits, arguments):
    leaf = logits.detach().requires_grad_()
    loss, metrics = op(leaf, **arguments)
    loss.backward()
    return loss.detach(), leaf.grad, metrics


@pytest.mark.parametrize("vocab", fitting([1000, 32_001, 151_936], [1000, 9_001]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_loss_error_is_no_larger_than_plain_pytorch(dtype, vocab, level):
    torch.manual_seed(0)
    N = fitting(64, 12)
    logits = (3 * torch.randn(N, vocab, device="cuda")).to(dtype)
    targets = torch.randint(vocab, (N,), device="cuda")
    targets[:3] = torch.tensor([0, vocab - 1, int(logits[2].argmax())])
    logp = reference.token_logprobs(logits, targets).logp
    arguments = {
        "targets": targets,
        "advantages": torch.randn(N, device="cuda"),
        "weights": torch.full((N,), 1 / N, device="cuda").index_fill(0, torch.tensor([5, 11], device="cuda"), 0.0),
        "old_logp": logp + 0.3 * torch.randn_like(logp),
        "ref_logp": logp + 0.2 * torch.randn_like(logp),
        "sequence_ids": torch.arange(N, device="cuda") % 4,
        "objective": PPOClip(0.2, 0.28, level=level),
        "beta": 0.1,
        "entropy_coef": 0.01,
    }
    draws = [torch.randn(N, device="cuda") for _ in range(4)]

    def losses_gradient_metrics(op, logits):
        """One loss is a sum whose terms may cancel, and then either's error is luck: it is the largest of several."""
        losses = [op(logits, **arguments | {"advantages": draw})[0] for draw in draws]
        return torch.stack(losses), *gradient_and_outputs(op, logits, arguments)[1:]

    ours = losses_gradient_metrics(grpo_loss, logits)
    plain = losses_gradient_metrics(reference.grpo_loss, logits)
    exact = losses_gradient_metrics(reference.grpo_loss, logits.double())
    for name, o, p, e in zip(("losses", "gradient"), ours[:2], plain[:2], exact[:2], strict=True):
        budget = (p.double() - e).abs().max() + 1e-6 * e.abs().max()
        assert (o.double() - e).abs().max() <= budget, name
    for name, e in exact[2].items():
        torch.testing.assert_close(ours[2][name].double(), e, rtol=1e-4, atol=1e-6, msg=name)


OBJECTIVES = [SAPO(level="sequence"), CISPO(level="sequence"), GMPO(), VESPO()]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda x: type(x).__name__)
def test_sequence_level_objectives(objective, packed):
    """More tokens than a program takes at a time, holes in the mask; packed rows in any order."""
    torch.manual_seed(1)
    B, T, V = 3, fitting(1500, 12), fitting(257, 17)
    logits = torch.randn(B, T, V, device="cuda")
    targets = torch.randint(V, (B, T), device="cuda")
    logp = reference.token_logprobs(logits, targets).logp
    mask = torch.rand(B, T, device="cuda") < 0.8
    tensors = {
        "targets": targets,
        "weights": token_weights(mask),
        "old_logp": logp + 0.1 * torch.randn_like(logp),
        "ref_logp": logp + 0.2 * torch.randn_like(logp),
    }
    options = {
        "advantages": torch.tensor([1.0, -0.5, 0.3], device="cuda"),
        "objective": objective,
        "beta": 0.1,
        "kl": "k3_is",
    }
    if packed:
        order = torch.randperm(B * T, device="cuda")
        tensors = {name: x.flatten()[order] for name, x in tensors.items()} | {"sequence_ids": order // T}
        logits = logits.flatten(0, 1)[order]
    ours = gradient_and_outputs(grpo_loss, logits, tensors | options)
    exact = gradient_and_outputs(reference.grpo_loss, logits.double(), tensors | options)
    for got, expected in zip(ours[:2], exact[:2], strict=True):
        assert (got.double() - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_no_op_waits_for_the_device():
    T = fitting(33, 2)
    logits = torch.randn(4, T, 1000, device="cuda").bfloat16()
    padded = {
        "targets": torch.randint(1000, (4, T), device="cuda"),
        "weights": torch.rand(4, T, device="cuda"),
        "old_logp": -torch.rand(4, T, device="cuda"),
        "ref_logp": -torch.rand(4, T, device="cuda"),
    }
    ids = torch.arange(4, device="cuda").repeat_interleave(T, output_size=4 * T)
    packed = {name: x.flatten(0, 1) for name, x in padded.items()} | {"sequence_ids": ids}
    rewards, advantages = torch.rand(12, device="cuda"), torch.randn(4, device="cuda")
    groups = torch.arange(12, device="cuda") // 3

    def everything():
        for objective in (PPOClip(), PPOClip(level="sequence"), VESPO()):
            options = {"advantages": advantages, "objective": objective, "beta": 0.1, "entropy_coef": 0.01}
            gradient_and_outputs(grpo_loss, logits, padded | options)
            gradient_and_outputs(grpo_loss, logits.flatten(0, 1), packed | options)
        token_logprobs(logits, padded["targets"])
        group_advantages(rewards, 4)
        group_advantages(rewards, group_ids=groups, num_groups=4)

    everything()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("groups", ["size", "ids"])
def test_advantages_are_one_launch(groups):
    B = fitting(1024, 64)
    rewards, ids = torch.rand(B, device="cuda"), torch.arange(B, device="cuda") // 8
    options = {"group_size": 8} if groups == "size" else {"group_ids": ids, "num_groups": B // 8}
    group_advantages(rewards, **options)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        group_advantages(rewards, **options)
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    if not events:  # pragma: no cover - a driver's affair
        pytest.skip("the profiler sees no kernels with this driver")
    assert len(events) == 1, [event.name for event in events]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_same_gradient_twice(level):
    """Bit for bit: nothing is added up in an order of the moment."""
    logits = torch.randn(fitting(64, 4), 1000, device="cuda").bfloat16()
    N = len(logits)
    arguments = {
        "targets": torch.randint(1000, (N,), device="cuda"),
        "advantages": torch.randn(N, device="cuda"),
        "weights": torch.rand(N, device="cuda"),
        "sequence_ids": torch.arange(N, device="cuda") % 4,
        "objective": PPOClip(level=level),
    }
    first, second = (gradient_and_outputs(grpo_loss, logits, arguments) for _ in range(2))
    for once, again in zip(first[:2], second[:2], strict=True):
        assert torch.equal(once, again)


@pytest.mark.parametrize("margin", [12.0, 20.0, 30.0])
def test_gradient_of_a_target_far_ahead(margin):
    logits = torch.zeros(1, 5000, device="cuda")
    logits[0, 2] = margin
    leaf = (logits + 100).requires_grad_()
    token_logprobs(leaf, torch.tensor([2], device="cuda")).logp.sum().backward()
    rest = 4999 * torch.tensor(-margin, dtype=torch.float64).exp()
    torch.testing.assert_close(leaf.grad[0, 2].double().cpu(), rest / (1 + rest), rtol=1e-4, atol=0)


def test_offsets_past_32_bits():
    """N * V > 2^31: rows at the end are as right as those at the start."""
    N, V = fitting((16_384, 151_936), (40, 999))
    if torch.cuda.mem_get_info()[0] < 2.5 * N * V * 2:  # pragma: no cover - a small device's affair
        pytest.skip("needs 13 GB of device memory")
    logits = torch.zeros(N, V, dtype=torch.bfloat16, device="cuda")
    logits[0::2].normal_()
    logits[1::2] = logits[0::2]  # rows 2k and 2k + 1 are the same
    targets = torch.arange(N, device="cuda") // 2 % V
    arguments = {"advantages": torch.ones(N, device="cuda"), "weights": torch.ones(N, device="cuda")}
    loss, gradient, _ = gradient_and_outputs(grpo_loss, logits, {"targets": targets} | arguments)
    assert loss == -N  # ratio 1
    torch.testing.assert_close(gradient[-1], gradient[-2], rtol=0, atol=0)
    assert gradient[-1].count_nonzero() > 0
    last = gradient_and_outputs(reference.grpo_loss, logits[-2:].double(), {
        "targets": targets[-2:], "advantages": torch.ones(2, device="cuda"), "weights": torch.ones(2, device="cuda"),
    })[1]  # fmt: skip
    torch.testing.assert_close(gradient[-2:].double(), last, rtol=1e-2, atol=1e-6)


def test_more_rows_than_a_grid_dimension():
    """T >= 65,536: rows are the one long dimension of the launch."""
    B, T, V = 1, fitting(70_001, 33), fitting(64, 8)
    logits = torch.randn(B, T, V, device="cuda")
    targets = torch.randint(V, (B, T), device="cuda")
    arguments = {"targets": targets, "advantages": torch.ones(B, device="cuda"), "weights": torch.ones(B, T).cuda() / T}
    ours = gradient_and_outputs(grpo_loss, logits, arguments)
    exact = gradient_and_outputs(reference.grpo_loss, logits.double(), arguments)
    torch.testing.assert_close(ours[1].double(), exact[1], rtol=1e-4, atol=1e-9)


@pytest.mark.skipif(MADE_UP, reason="nothing is compiled there; test_launch_path.py compiles without a device")
def test_a_new_length_needs_no_new_kernel():  # pragma: no cover - the interpreter compiles nothing
    from fgrpo_kernels.gpu.loss_kernel import grpo_loss_kernel

    def run(T):
        logits = torch.randn(2, T, 4096, device="cuda", dtype=torch.bfloat16)
        arguments = {"advantages": torch.ones(2, device="cuda"), "weights": torch.ones(2, T, device="cuda")}
        gradient_and_outputs(grpo_loss, logits, {"targets": torch.zeros(2, T).long().cuda()} | arguments)

    run(16)
    caches = grpo_loss_kernel.device_caches[torch.cuda.current_device()][0]
    before = len(caches)
    for T in (17, 31, 32, 100):
        run(T)
    assert len(caches) == before


def test_group_advantages():
    rewards = torch.randn(fitting(1024, 48), device="cuda")
    for scale in ("group", "batch", "none"):
        got = group_advantages(rewards, 8, scale=scale)
        exact = reference.group_advantages(rewards.double(), 8, scale=scale)
        torch.testing.assert_close(got.advantages.double(), exact.advantages, rtol=1e-5, atol=1e-5)
        assert not got.degenerate.any()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_device_that_is_not_the_current_one():  # pragma: no cover - the made-up device is the only one
    logits = torch.randn(4, 100, device="cuda:1")
    targets = torch.arange(4, device="cuda:1")
    torch.testing.assert_close(
        token_logprobs(logits, targets).logp, reference.token_logprobs(logits, targets).logp, rtol=1e-5, atol=1e-5
    )
