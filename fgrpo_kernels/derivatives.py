"""Derivatives that the fused ops do not have: the reference gives them, or an error says so. None comes out as 0.

The fused ops have one, plain autograd's reverse derivative. To `torch.library` a derivative without a formula is no
mistake: a tangent of `torch.func.jvp` would be dropped without a word, and so would the graph of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Backward = Callable[..., Any]


def needs_reference(*tensors: Tensor | None) -> bool:
    """Whether a tensor carries a forward-mode tangent, or the call is inside a transform of `torch.func`.

    The reference is plain PyTorch, which has them all.
    """
    return transforms_active() or any(x is not None and _has_tangent(x) for x in tensors)


def check_constants(op: str, **constants: Tensor | None) -> None:
    """Raise for a derivative in an argument that is a constant to the op, where it would come out as 0.

    Plain autograd needs no such check: it says itself that a tensor was not used.
    """
    for name, x in constants.items():
        if x is not None and (_has_tangent(x) or (transforms_active() and x.requires_grad)):
            raise NotImplementedError(
                f"{op}: {name} is a constant to every derivative, but a derivative in it is asked for; pass "
                f"{name}.detach() if it should be one"
            )


def as_constant(x: Tensor) -> Tensor:
    """`x` as a graph may keep it: detached, and a copy if it was made in `torch.inference_mode`."""
    x = x.detach()
    return x.clone() if not torch.compiler.is_compiling() and x.is_inference() else x


def first_derivative_only(op: str) -> Callable[[Backward], Backward]:
    """A backward formula that raises where its result would be differentiated again (`create_graph=True`).

    `torch.autograd.function.once_differentiable` lets that pass if the incoming gradient is a constant, as of a sum.
    """

    def decorate(backward: Backward) -> Backward:
        @wraps(backward)
        def checked(*arguments: Any) -> Any:
            if torch.is_grad_enabled():
                raise NotImplementedError(
                    f"{op}: its backward pass has no derivative of its own, so create_graph=True is not possible; "
                    f"fgrpo_kernels.reference.{op} is plain PyTorch and has every derivative"
                )
            return backward(*arguments)

        return checked

    return decorate


def transforms_active() -> bool:
    """Whether this runs inside a transform of `torch.func`: jvp, grad, vmap, functionalize..."""
    return torch._C._are_functorch_transforms_active()


def _has_tangent(x: Tensor) -> bool:
    return x.is_floating_point() and forward_ad.unpack_dual(x).tangent is not None
