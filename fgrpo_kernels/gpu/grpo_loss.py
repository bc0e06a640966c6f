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
from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.launch_table import tile_for
from fgrpo_kernels.gpu.policy_rows import load_terms, row_terms
from fgrpo_kernels.gpu.policy_terms import BLOCK, METRICS, named_metrics, parameters_of, policy_terms, vectors_of
from fgrpo_kernels.gpu.row_softmax import row_offset, row_statistics, write_row_gradient, write_zero_row
from fgrpo_kernels.gpu.token_logprobs import UNSPECIALISED_WITH_GRADIENT, rows_of
from fgrpo_kernels.jit import FUSED, jit, tl
from fgrpo_kernels.kl import DEVICE_ESTIMATORS
from fgrpo_kernels.objectives import DEVICE_FUNCTIONS
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


@jit(do_not_specialize=[*UNSPECIALISED_WITH_GRADIENT, "a", "b", "c", "d", "beta", "entropy_coef"])
def grpo_loss_kernel(
    logits_ptr: tl.tensor,
    step_b: tl.tensor,
    step_t: tl.tensor,
    unit: tl.tensor,
    grad_ptr: tl.tensor,
    grad_step_b: tl.tensor,
    grad_step_t: tl.tensor,
    grad_unit: tl.tensor,
    T: tl.tensor,
    targets_ptr: tl.tensor,
    advantages_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    old_ptr: tl.tensor,
    ref_ptr: tl.tensor,
    logp_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    vocab: tl.tensor,
    columns: tl.tensor,
    inv_temperature: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    beta: tl.tensor,
    entropy_coef: tl.tensor,
    OBJECTIVE: tl.constexpr,
    KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Program n: logp and entropy of row n, and its gradient unless `grad_ptr` is None; nothing is read of a row that
    is not informative."""
    row = tl.program_id(0).to(tl.int64)
    ALL_WEIGHTED: tl.constexpr = (KL is not None) or HAS_ENTROPY
    terms = load_terms(row, True, advantages_ptr, weights_ptr, factor_ptr, old_ptr, ref_ptr, ALL_WEIGHTED)
    live, advantage, weight, factor, old, ref = terms
    logp, entropy = 0.0, 0.0
    if live:
        row_ptr = logits_ptr + row_offset(row, T, step_b, step_t, unit)
        target = tl.load(targets_ptr + row).to(tl.int32)
        peak, log_sum, logp, entropy = row_statistics(row_ptr, target, vocab, inv_temperature, PARTS, THREADS, VECTOR)
        if grad_ptr is not None:
            if old_ptr is None:
                old = logp
            _, own, shared, _, _, _, _ = row_terms(
                logp, entropy, old, ref, logp - old, advantage, factor, a, b, c, d, beta, entropy_coef,
                OBJECTIVE, False, KL, HAS_ENTROPY,
            )  # fmt: skip
            write_row_gradient(
                row_ptr,
                grad_ptr + row_offset(row, T, grad_step_b, grad_step_t, grad_unit),
                target,
                vocab,
                columns,
                peak,
                log_sum,
                logp,
                entropy,
                weight * (own + shared),
                -weight * entropy_coef,
                inv_temperature,
                HAS_ENTROPY,
                PARTS,
                THREADS,
                VECTOR,
            )
    elif grad_ptr is not None:
        grad_row_ptr = grad_ptr + row_offset(row, T, grad_step_b, grad_step_t, grad_unit)
        write_zero_row(grad_row_ptr, columns, PARTS, THREADS, VECTOR)
    tl.store(logp_ptr + row, logp)
    tl.store(entropy_ptr + row, entropy)


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
        with device_of(logits):
            grpo_loss_kernel[(N,)](
                *x[:4], *grads, x.T, targets_N.contiguous(), *vectors, logp_N, entropy_N,
                vocab_size, logits.shape[-1], 1.0 / temperature, *parameters, beta, entropy_coef,
                OBJECTIVE=DEVICE_FUNCTIONS[objective],
                KL=DEVICE_ESTIMATORS[kl] if beta != 0 else None,
                HAS_ENTROPY=entropy_coef != 0,
                **tile_for(logits, vocab_size, read_twice=True).arguments(),
            )  # fmt: skip
    blocks = (None, None, BLOCK, -(-N // BLOCK))
    loss, metrics, _, _ = policy_terms(
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


class _GRPOLossTokens(torch.autograd.Function):
    """`grpo_loss_tokens`, whose backward pass scales the gradient in place and gives it away.

    That spares a copy of the gradient, but is nothing that a compiler may see, so compiled code takes the op.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        loss, metrics, ctx.gradient = grpo_loss_tokens(*arguments)
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
            _, _, gradient = grpo_loss_tokens(*tensors, *ctx.options)
        scale_(gradient, grad_loss)
        return (gradient, *[None] * 14)
