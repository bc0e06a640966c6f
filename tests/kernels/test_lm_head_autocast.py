"""Mixed precision: float32 parameters under bf16 autocast, as trainers have them by default, beside TRL's head."""

import pytest
import torch
from loss_cases import B, T, V, make_case

from fgrpo_kernels import PPOClip, linear_grpo_loss, linear_token_logprobs, reference, token_weights

H, R = 64, 4
OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"logit_softcap": 4.0, "logit_scale": 0.7},
    "low rank": {"low_rank": True},
    "padded vocabulary": {"vocab_size": V - 5, "bias": True},
}


def loss_by(op):
    """`(hidden, weight, targets, **head) -> scalar` by one of the ops."""
    case = make_case(torch.float32)
    if op == "logprobs":
        rng = torch.Generator().manual_seed(3)
        slopes = torch.randn(2, B, T, generator=rng)

        def loss(hidden, weight, targets, namespace_op=linear_token_logprobs, **head):
            outputs = namespace_op(hidden, weight, targets, row_mask=case.mask_BT, **head)
            return sum((s.to(x.dtype) * x).sum() for s, x in zip(slopes, outputs, strict=True))

        return loss
    options = {"objective": PPOClip(level=op), "old_logp": case.old_logp_BT, "entropy_coef": 0.1}

    def loss(hidden, weight, targets, namespace_op=linear_grpo_loss, **head):
        return namespace_op(
            hidden, weight, targets, case.advantages_B, token_weights(case.mask_BT), **options, **head
        ).loss

    return loss


def make_leaves():
    rng = torch.Generator().manual_seed(5)
    shapes = {"hidden": (B, T, H), "weight": (V, H), "bias": (V,), "hidden_A": (B, T, R), "weight_B": (V, R)}
    return {name: 0.3 * torch.randn(*shape, generator=rng) for name, shape in shapes.items()}


def gradients(loss, options, frozen=(), dtype=torch.float32, **more):
    """By leaf, and None for those that take no part or are frozen."""
    leaves = {name: x.to(dtype).requires_grad_(name not in frozen) for name, x in make_leaves().items()}
    head = dict(options)
    if head.pop("bias", False):
        head["bias"] = leaves["bias"]
    if head.pop("low_rank", False):
        head["low_rank"] = (leaves["hidden_A"], leaves["weight_B"])
    targets = make_case().targets_BT.clamp(max=head.get("vocab_size", V) - 1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
        total = loss(leaves["hidden"], leaves["weight"], targets, **head, **more)
    total.backward()
    return {name: x.grad for name, x in leaves.items()}


@pytest.mark.parametrize("frozen", [(), ("weight",), ("hidden", "hidden_A")], ids=["all", "frozen-head", "frozen-base"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("op", ["logprobs", "token", "sequence"])
def test_gradients_of_float32_leaves_are_float32_sums(op, options, frozen):
    """Nothing rounds them to bfloat16 on the way: hardly any of their numbers is one."""
    found = gradients(loss_by(op), options, frozen)
    exact = gradients(
        loss_by(op), options, frozen, torch.float64,
        namespace_op=reference.linear_token_logprobs if op == "logprobs" else reference.linear_grpo_loss,
    )  # fmt: skip
    assert [name for name, x in found.items() if x is not None] == [name for name, x in exact.items() if x is not None]
    for name, gradient in found.items():
        if gradient is None:
            continue
        assert gradient.dtype == torch.float32
        assert (gradient - exact[name]).norm() <= 2**-7 * exact[name].norm(), name
        live = gradient[gradient != 0]
        assert (live == live.bfloat16()).float().mean() < 0.1, name


@pytest.mark.parametrize("options", [{}, {"bias": True}], ids=str)
def test_error_is_no_larger_than_that_of_trls_head(options):
    kernel = pytest.importorskip("trl.kernels.chunked_logprob").ChunkedLogProbFunction
    ours = loss_by("logprobs")

    def trls(hidden, weight, targets, row_mask, bias=None):
        outputs = kernel.apply(hidden.flatten(0, 1), weight, bias, targets.flatten(), 1.0, 16, None, 1.0, ("entropy",))
        return [x.view(B, T) * row_mask for x in outputs[:2]]

    exact = gradients(ours, options, dtype=torch.float64, namespace_op=reference.linear_token_logprobs)
    found, theirs = gradients(ours, options), gradients(ours, options, namespace_op=trls)
    for name in ("hidden", "weight", *options):
        error, budget = ((x[name] - exact[name]).norm() / exact[name].norm() for x in (found, theirs))
        assert error <= 1.05 * budget, f"{name}: {error:.3g} against TRL's {budget:.3g}"
