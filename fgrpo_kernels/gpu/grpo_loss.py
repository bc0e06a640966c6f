"""`grpo_loss` on a GPU.

Token-level objectives take one kernel over the rows, which reads a row (first pass: softmax statistics), knows the
row's share of the loss and of the gradient, reads the row again while it is still in cache and writes its gradient;
then two small kernels that sum the rows' terms. Sequence-level ones take three passes: statistics, the arithmetic of
`policy_terms`, gradient.

N rows   V columns
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels.derivatives import first_derivative_only
from fgrpo_kernels.direct import direct
from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.loss_rows import launch_loss
from fgrpo_kernels.gpu.policy_terms import (
    BLOCK,
    METRICS,
    named_metrics,
    parameters_of,
    policy_terms_directly,
    vectors_of,
)
from fgrpo_kernels.gpu.token_logprobs import rows_of
from fgrpo_kernels.jit import FUSED, jit, tl
from fgrpo_kernels.objectives.base import DeviceForm
from fgrpo_kernels.policy_terms import PolicyTerms
from fgrpo_kernels.results import GRPOLoss


def takes_one_pass(logits: Tensor, terms: PolicyTerms) -> bool:
    """Whether a row's gradient is known as soon as the row is read, and may be rounded then.

    The single pass rounds it before the incoming gradient, such as a loss scale, is known: in float16 small ones would
    be lost.
    """
    return not terms.objective.sequence_level and logits.dtype != torch.float16


def loss_in_one_pass(
    logits: Tensor, targets_N: Tensor, terms: PolicyTerms, form: DeviceForm, temperature: float, vocab_size: int
) -> GRPOLoss:
    """`fgrpo_kernels.grpo_loss` after its checks, where `takes_one_pass`."""
    op = grpo_loss_tokens if torch.compiler.is_compiling() else _GRPOLossTokens.apply
    loss, metrics = op(
        logits, targets_N, *vectors_of(terms), form.name, parameters_of(form), terms.beta, terms.kl,
        terms.entropy_coef, temperature, vocab_size, torch.is_grad_enabled() and logits.requires_grad,
    )[:2]  # fmt: skip
    return GRPOLoss(loss, named_metrics(metrics, terms))


@torch.library.custom_op("fgrpo::grpo_loss_tokens", mutates_args=())
def grpo_loss_tokens(
    logits: Tensor,
    targets_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    policy_factor_N: Tensor | None,
    old_logp_N: Tensor | None,
    ref_logp_N: Tensor | None,
    objective: str,
    parameters: list[float],
    beta: float,
    kl: str,
    entropy_coef: float,
    temperature: float,
    vocab_size: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`(loss, metrics, gradient)`: 0-d, `[len(METRICS)]`, and the logits' gradient (empty unless asked for).

    Vectors are `[N]` float32. Only the loss is differentiable.
    """
    gradient = _empty_gradient(logits, with_gradient)
    N = targets_N.numel()
    logp_N, entropy_N = (torch.empty(N, dtype=torch.float32, device=logits.device) for _ in range(2))
    vectors = (advantages_N, weights_N, policy_factor_N, old_logp_N, ref_logp_N)
    if N > 0:
        x = rows_of(logits)
        grads = rows_of(gradient)[:4] if with_gradient else (None, 0, 0, 0)
        rows = (*x[:4], *grads, x.T, targets_N.contiguous(), *vectors, logp_N, entropy_N)
        numbers = (vocab_size, logits.shape[-1], 1.0 / temperature, *parameters, beta, entropy_coef)
        launch_loss(rows, numbers, N, objective, kl)
    blocks = (None, None, BLOCK, -(-N // BLOCK))
    loss, metrics, _, _ = policy_terms_directly(
        logp_N, entropy_N, None, None, *blocks, *vectors, objective, parameters, False, beta, kl, entropy_coef, False
    )
    return loss, metrics, gradient


@grpo_loss_tokens.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        logits.new_empty((), dtype=torch.float32),
        logits.new_empty(len(METRICS), dtype=torch.float32),
        _empty_gradient(logits, arguments[-1]),
    )


def _empty_gradient(logits: Tensor, with_gradient: bool) -> Tensor:
    shape = logits.shape if with_gradient else (0,)
    return torch.empty(shape, dtype=logits.dtype, device=logits.device)


SCALE_BLOCK = 4096


@jit(do_not_specialize=["blocks", "tail"])
def scale_kernel(
    x_ptr: tl.tensor, factor_ptr: tl.tensor, blocks: tl.tensor, tail: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """`x *= factor` in so many whole blocks and `tail` values, without touching `x` where the factor is 1."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        offsets = tl.arange(0, BLOCK)
        first = tl.program_id(0).to(tl.int64)
        for block in range(first, blocks, tl.num_programs(0)):
            where = x_ptr + block * BLOCK + offsets
            tl.store(where, (tl.load(where).to(tl.float32) * factor).to(x_ptr.dtype.element_ty))
        if first == 0:
            where = x_ptr + (first + blocks) * BLOCK + offsets
            x = tl.load(where, mask=offsets < tail).to(tl.float32)
            tl.store(where, (x * factor).to(x_ptr.dtype.element_ty), mask=offsets < tail)


@torch.library.custom_op("fgrpo::scale_", mutates_args={"x"})
def scale_(x: Tensor, factor: Tensor) -> None:
    """`x *= factor` for a contiguous `x` and a 0-d factor; almost free where the factor is 1, as it mostly is."""
    if x.numel() > 0:
        blocks, tail = divmod(x.numel(), SCALE_BLOCK)
        with device_of(x):
            scale_kernel[(max(1, min(1024, blocks)),)](
                x, factor.to(torch.float32), blocks, tail, BLOCK=SCALE_BLOCK, num_warps=8, **FUSED
            )


@scale_.register_fake
def _(*_: Any) -> None:
    return None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(*output[1:])


@first_derivative_only("grpo_loss")
def _backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (gradient * grad_loss.to(gradient.dtype), *[None] * 14)


grpo_loss_tokens.register_autograd(_backward, setup_context=_save)
_loss_tokens = direct(grpo_loss_tokens)
scale_directly_ = direct(scale_)


class _GRPOLossTokens(torch.autograd.Function):
    """`grpo_loss_tokens`, whose backward pass scales the gradient in place and gives it away.

    That spares a copy of the gradient, but is nothing that a compiler may see, so compiled code takes the op.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        loss, metrics, ctx.gradient = _loss_tokens(*arguments)
        ctx.save_for_backward(*arguments[:7])
        ctx.options = arguments[7:]
        ctx.mark_non_differentiable(metrics)
        return loss, metrics

    @staticmethod
    @first_derivative_only("grpo_loss")
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # raises if the logits have been written to
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # an earlier backward pass has given it away
            _, _, gradient = _loss_tokens(*tensors, *ctx.options)
        scale_directly_(gradient, grad_loss)
        return (gradient, *[None] * 14)
