"""Every derivative of every op is right, or an error says there is none: forward, twice, batched, in torch.func."""

import pytest
import torch
from op_inputs import LEAVES, arguments, scalar
from torch.autograd import forward_ad

from fgrpo_kernels import (
    PPOClip,
    group_advantages,
    grpo_loss,
    linear_grpo_loss,
    partial_token_stats,
    reference,
    token_logprobs,
    token_weights,
)
from fgrpo_kernels.dispatch import uses_triton

CASES = [
    pytest.param(op, leaf, options, id="-".join([op.__name__, leaf, *map(str, options)]))
    for op, leaves in LEAVES.items()
    for leaf in leaves
    for options in ({}, {"objective": PPOClip(level="sequence")})
    if not options or "loss" in op.__name__
]


def function_of(op, leaf, options):
    """`leaf -> scalar`, the same in float64 by the reference, a point and a direction."""
    right = arguments(op) | options
    exact = getattr(reference, op.__name__)
    double = {name: x.double() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in right.items()}
    point = right.pop(leaf)
    direction = torch.randn(point.shape, generator=torch.Generator().manual_seed(1))
    return (
        lambda x: scalar(op, **right, **{leaf: x}),
        lambda x: scalar(exact, **double | {leaf: x}),
        point,
        direction,
    )


def close(got, expected):
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op", "leaf", "options"), CASES)
def test_right_or_an_error(op, leaf, options):
    f, exact, x, v = function_of(op, leaf, options)
    at = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(exact(at), at, create_graph=True)
    along = (gradient * v).sum()
    (second,) = torch.autograd.grad(along, at)
    gradient, along = gradient.detach(), along.detach()
    assert along.abs() > 1e-3, "a dropped derivative would not be seen"
    assert second.abs().max() > 1e-3

    close(torch.func.jvp(f, (x,), (v,))[1], along)
    for primal in (x, x.clone().requires_grad_()):
        with forward_ad.dual_level():
            close(forward_ad.unpack_dual(f(forward_ad.make_dual(primal, v))).tangent, along)
    close(torch.func.grad(f)(x), gradient)
    close(torch.func.vjp(f, x)[1](torch.tensor(1.0))[0], gradient)
    close(torch.func.functionalize(torch.func.grad(f))(x), gradient)
    close(torch.func.jvp(torch.func.grad(f), (x,), (v,))[1], second)
    batch = torch.stack([x, x + v])
    close(torch.func.vmap(f)(batch), torch.stack([f(y) for y in batch]))
    close(torch.func.vmap(torch.func.grad(f))(batch)[0], gradient)

    leaf = x.clone().requires_grad_()
    if op is partial_token_stats and not uses_triton(x):  # plain PyTorch
        (graph,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
        close(torch.autograd.grad((graph * v).sum(), leaf)[0], second)
    else:
        with pytest.raises(NotImplementedError, match="backward pass has no derivative of its own, so create_graph"):
            torch.autograd.grad(f(leaf), leaf, create_graph=True)
    (plain,) = torch.autograd.grad(f(leaf), leaf)
    close(plain, gradient)


CONSTANTS = ["advantages", "weights", "old_logp", "ref_logp", "policy_factor", "mask"]


@pytest.mark.parametrize(
    ("op", "name"),
    [*((op, name) for op in (grpo_loss, linear_grpo_loss) for name in CONSTANTS), (group_advantages, "rewards")],
)
def test_a_derivative_in_a_constant_is_refused(op, name):
    f, _, x, v = function_of(op, name, {})
    message = rf"{op.__name__}: {name} is a constant to every derivative.*{name}\.detach\(\)"
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(f, (x,), (v,))
    with pytest.raises(NotImplementedError, match=message), forward_ad.dual_level():
        f(forward_ad.make_dual(x, v))
    with pytest.raises(NotImplementedError, match=message):
        torch.func.grad(f)(x)
    assert torch.func.grad(lambda y: f(y.detach()) + y.sum())(x).eq(1).all()


def test_weights_are_differentiable_in_a_mask_that_is():
    def f(mask):
        return (token_weights(mask, "grpo") ** 2).sum()

    v = torch.arange(6.0).view(2, 3)
    mask = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    (gradient,) = torch.autograd.grad(f(leaf := mask.clone().requires_grad_()), leaf)
    close(torch.func.jvp(f, (mask,), (v,))[1], (gradient * v).sum())


def test_forward_mode_in_compiled_code():
    targets = torch.tensor([1, 2])

    def along(x, v):
        return torch.func.jvp(lambda x: token_logprobs(x, targets).logp.sum(), (x,), (v,))[1]

    x, v = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    close(torch.compile(along, backend="eager")(x, v), along(x, v))
