"""`partial_token_stats` on a GPU: one read of the shard forwards, one read and one write backwards.

N rows
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels.derivatives import as_constant, first_derivative_only
from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.launch_table import tile_for
from fgrpo_kernels.gpu.row_gradient import write_row
from fgrpo_kernels.gpu.row_softmax import row_offset, scan_row
from fgrpo_kernels.gpu.token_logprobs import UNSPECIALISED, UNSPECIALISED_WITH_GRADIENT, rows_of
from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import LN_2, LOG2_E
from fgrpo_kernels.results import PartialTokenStats


@jit(do_not_specialize=[*UNSPECIALISED, "vocab_start"])
def partial_token_stats_kernel(
    logits_ptr: tl.tensor,
    step_b: tl.tensor,
    step_t: tl.tensor,
    unit: tl.tensor,
    T: tl.tensor,
    targets_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    others_ptr: tl.tensor,
    dot_ptr: tl.tensor,
    target_logit_ptr: tl.tensor,
    vocab: tl.tensor,
    vocab_start: tl.tensor,
    inv_temperature: tl.tensor,
    AGAIN: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Program n: the partial statistics of row n."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row_offset(row, T, step_b, step_t, unit)
    target = (tl.load(targets_ptr + row) - vocab_start).to(tl.int32)
    inside = (target >= 0) & (target < vocab)
    target_logit = tl.load(row_ptr + target, mask=inside, other=float("-inf")).to(tl.float32)
    peak, others, dot = scan_row(
        row_ptr, target, target_logit, vocab, inv_temperature, (), AGAIN, STAGES, 0, PARTS, THREADS, VECTOR
    )
    tl.store(peak_ptr + row, peak * inv_temperature)
    tl.store(others_ptr + row, others)
    tl.store(dot_ptr + row, dot)
    tl.store(target_logit_ptr + row, target_logit * inv_temperature)


@jit(do_not_specialize=[*UNSPECIALISED_WITH_GRADIENT, "vocab_start"])
def partial_token_stats_backward_kernel(
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
    peak_ptr: tl.tensor,
    grad_others_ptr: tl.tensor,
    grad_dot_ptr: tl.tensor,
    grad_target_ptr: tl.tensor,
    vocab: tl.tensor,
    vocab_start: tl.tensor,
    inv_temperature: tl.tensor,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Program n: the gradient of row n. With `s = (logit - peak) / temperature`, `others` is a sum of `e^s` with slope
    `e^s` in s, and `dot` one of `e^s * s` with slope `e^s * (1 + s)`."""
    row = tl.program_id(0).to(tl.int64)
    grad_others = tl.load(grad_others_ptr + row)
    grad_dot = tl.load(grad_dot_ptr + row)
    write_row(
        logits_ptr + row_offset(row, T, step_b, step_t, unit),
        grad_ptr + row_offset(row, T, grad_step_b, grad_step_t, grad_unit),
        (tl.load(targets_ptr + row) - vocab_start).to(tl.int32),
        vocab,
        vocab,
        tl.load(peak_ptr + row) / inv_temperature,
        inv_temperature * LOG2_E,
        0.0,
        (grad_others + grad_dot) * inv_temperature,
        grad_dot * LN_2 * inv_temperature,
        tl.load(grad_target_ptr + row) * inv_temperature,
        (),
        True,
        STAGES,
        0,
        PARTS,
        THREADS,
        VECTOR,
    )


def partial_token_stats(
    logits_shard: Tensor, targets: Tensor, vocab_start: int, temperature: float
) -> PartialTokenStats:
    """`fgrpo_kernels.partial_token_stats` after its checks."""
    outputs = partial_stats_forward(logits_shard, as_constant(targets).reshape(-1), vocab_start, temperature)
    return PartialTokenStats(*(x_N.view(targets.shape) for x_N in outputs))


@torch.library.custom_op("fgrpo::partial_token_stats", mutates_args=())
def partial_stats_forward(
    logits_shard: Tensor, targets_N: Tensor, vocab_start: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(peak, others, dot, target)`, each `[N]` float32."""
    outputs = _outputs(logits_shard, targets_N)
    if targets_N.numel() > 0:
        vocab = logits_shard.shape[-1]
        with device_of(logits_shard):
            partial_token_stats_kernel[(targets_N.numel(),)](
                *rows_of(logits_shard), targets_N.contiguous(), *outputs, vocab, vocab_start, 1.0 / temperature,
                **tile_for(logits_shard, vocab, "scan").arguments(),
            )  # fmt: skip
    return outputs


@partial_stats_forward.register_fake
def _(logits_shard: Tensor, targets_N: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(logits_shard, targets_N)


def _outputs(logits_shard: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (torch.empty(targets_N.numel(), dtype=torch.float32, device=logits_shard.device) for _ in range(4))
    return a, b, c, d


@torch.library.custom_op("fgrpo::partial_token_stats_backward", mutates_args=())
def partial_stats_backward(
    logits_shard: Tensor,
    targets_N: Tensor,
    peak_N: Tensor,
    grad_others_N: Tensor,
    grad_dot_N: Tensor,
    grad_target_N: Tensor,
    vocab_start: int,
    temperature: float,
) -> Tensor:
    """The shard's gradient."""
    gradient = torch.empty(logits_shard.shape, dtype=logits_shard.dtype, device=logits_shard.device)
    if targets_N.numel() > 0:
        vocab = logits_shard.shape[-1]
        x, grads = rows_of(logits_shard), rows_of(gradient)
        incoming = (grad_others_N.contiguous(), grad_dot_N.contiguous(), grad_target_N.contiguous())
        with device_of(logits_shard):
            partial_token_stats_backward_kernel[(targets_N.numel(),)](
                *x[:4], *grads[:4], x.T, targets_N.contiguous(), peak_N, *incoming,
                vocab, vocab_start, 1.0 / temperature, **tile_for(logits_shard, vocab, "write").arguments(),
            )  # fmt: skip
    return gradient


@partial_stats_backward.register_fake
def _(logits_shard: Tensor, *_: Any) -> Tensor:
    return torch.empty(logits_shard.shape, dtype=logits_shard.dtype, device=logits_shard.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_shard, targets_N, ctx.vocab_start, ctx.temperature = inputs
    ctx.save_for_backward(logits_shard, targets_N, output[0])
    ctx.mark_non_differentiable(output[0])


@first_derivative_only("partial_token_stats")
def _backward(ctx: Any, _: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
    return partial_stats_backward(*ctx.saved_tensors, *incoming, ctx.vocab_start, ctx.temperature), None, None, None


partial_stats_forward.register_autograd(_backward, setup_context=_save)
