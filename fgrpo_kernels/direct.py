"""Ops without their registration, for calls that nothing traces: PyTorch's dispatcher takes longer than a small kernel.

What is registered is there for `torch.compile`, for fake tensors, for modes and transforms; a plain call on plain
tensors runs the same function at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels.derivatives import transforms_active

PLAIN = {Tensor, torch.nn.Parameter}


def is_plain(x: Tensor) -> bool:
    """Whether nothing compiles, transforms or watches a call on `x`."""
    return (
        type(x) in PLAIN
        and not torch.compiler.is_compiling()
        and not transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def direct(op: Any, save: Callable[..., None] | None = None, backward: Callable[..., Any] | None = None) -> Any:
    """A custom op as a function that skips the dispatcher where it may. Its first argument is a tensor.

    save, backward: what the op's `register_autograd` was given, if it has a derivative
    """
    body = op._init_fn
    run = body if save is None or backward is None else _function(body, save, backward).apply

    def call(*arguments: Any) -> Any:
        if not is_plain(arguments[0]):
            return op(*arguments)
        return run(*arguments) if torch.is_grad_enabled() else body(*arguments)

    return call


def _function(
    body: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """With one `forward` for both: PyTorch looks up the signature of one that has a `setup_context` at every call."""

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = body(*inputs)
            save(ctx, inputs, output)
            return output

    Direct.backward = staticmethod(backward)  # type: ignore[method-assign]
    return Direct
