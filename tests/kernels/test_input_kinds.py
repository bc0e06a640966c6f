"""Tensors of every kind, in place of every argument of every op: values and gradients are those of plain ones.

With TRITON_INTERPRET=1 the same holds of the Triton path, so both paths take the same.
"""

import pytest
import torch
from op_inputs import LEAVES, arguments, scalar

from fgrpo_kernels.jit import INTERPRETED


class Subclass(torch.Tensor):
    pass


def in_inference_mode(x):
    with torch.inference_mode():
        return x.clone()


def without_grad(x):
    with torch.no_grad():
        return x * 1


KINDS = {
    "inference": in_inference_mode,
    "no_grad": without_grad,
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "at an offset": lambda x: torch.cat([x[:1], x])[1:],
    "requires grad": lambda x: x.clone().requires_grad_(x.is_floating_point()),
    "of a graph": lambda x: x.clone().requires_grad_() * 1 if x.is_floating_point() else x,
    "parameter": lambda x: torch.nn.Parameter(x.clone(), requires_grad=False),
    "subclass": lambda x: x.as_subclass(Subclass),
    "double": lambda x: x.double() if x.is_floating_point() else x,
}


def run(op, given):
    """What comes out, and the gradients of the op's leaves."""
    leaves = [given[name] for name in LEAVES[op]]
    total = scalar(op, **given)
    gradients = torch.autograd.grad(total, leaves) if leaves else ()
    return [x.detach().as_subclass(torch.Tensor) for x in (total, *gradients)]


def with_kind(make, kind, x, is_leaf):
    """`x` made anew; what the gradient is asked for has to require it, and decides the op's dtype."""
    if not torch.is_tensor(x):
        return x
    changed = x.clone() if is_leaf and kind in ("inference", "double") else make(x)
    return changed.requires_grad_() if is_leaf and not changed.requires_grad else changed


@pytest.mark.parametrize("op", LEAVES, ids=lambda op: op.__name__)
def test_every_argument(op):
    right = arguments(op)
    with_leaves = right | {name: right[name].clone().requires_grad_() for name in LEAVES[op]}
    expected = run(op, with_leaves)
    # The interpreter takes its time: there, all arguments at once are of a kind.
    for names in [list(right)] if INTERPRETED else [[name] for name in right]:
        for kind, make in KINDS.items():
            changed = {name: with_kind(make, kind, right[name], name in LEAVES[op]) for name in names}
            got = run(op, with_leaves | changed)
            for g, e in zip(got, expected, strict=True):
                error = (g.double() - e.double()).abs().max()
                assert error <= 1e-5 * e.abs().max(), f"{kind}: {', '.join(names)}"


@pytest.mark.parametrize("op", LEAVES, ids=lambda op: op.__name__)
def test_nothing_but_inference_tensors(op):
    right = arguments(op)
    expected = scalar(op, **right)
    made = {name: in_inference_mode(x) if torch.is_tensor(x) else x for name, x in right.items()}
    torch.testing.assert_close(scalar(op, **made), expected)
    for given in (right, made):
        with torch.inference_mode():
            torch.testing.assert_close(scalar(op, **given), expected)


@pytest.mark.parametrize("op", LEAVES, ids=lambda op: op.__name__)
def test_tensors_elsewhere_than_by_default(op):
    """As after `torch.set_default_device`: what an op makes itself lies where its arguments do."""

    def op_here(**given):
        with torch.device("meta"):
            return op(**given)

    right = arguments(op)
    right |= {name: right[name].clone().requires_grad_() for name in LEAVES[op]}
    leaves = [right[name] for name in LEAVES[op]]
    expected = run(op, right)
    total = scalar(op_here, **right)
    with torch.device("meta"):
        got = [total, *(torch.autograd.grad(total, leaves) if leaves else ())]
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("op", [op for op in LEAVES if len(LEAVES[op]) > 1], ids=lambda op: op.__name__)
def test_an_inference_tensor_in_a_product_is_pytorchs_own_error(op):
    """As in `torch.nn.functional.linear`: the gradient of the weight needs the hidden states, which may not be kept."""
    right = arguments(op)
    for name in LEAVES[op]:
        leaves = {other: right[other].clone().requires_grad_() for other in LEAVES[op] if other != name}
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            scalar(op, **right | leaves | {name: in_inference_mode(right[name])})


@pytest.mark.parametrize("op", LEAVES, ids=lambda op: op.__name__)
def test_expanded_rows(op):
    """One sequence, seen B times in the same memory."""
    right = arguments(op)
    alike = {name: x[:1].expand(x.shape) if torch.is_tensor(x) and x.ndim > 1 and name not in ("weight", "bias") else x
             for name, x in right.items()}  # fmt: skip
    copied = {name: x.contiguous() if torch.is_tensor(x) else x for name, x in alike.items()}
    torch.testing.assert_close(scalar(op, **alike), scalar(op, **copied))
