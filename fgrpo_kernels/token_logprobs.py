"""Log-probability of each target and entropy of each row of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrpo_kernels.checks import check_floating, check_positive, check_rows, check_targets
from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu import token_logprobs as gpu
from fgrpo_kernels.results import TokenLogprobs
from fgrpo_kernels.rowwise import RowStats, logits_gradient_, row_stats, rows_with_gradient, slices


def token_logprobs(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, inplace_backward: bool = False
) -> TokenLogprobs:
    """`log_softmax(logits / temperature)` at the targets, and the entropy of that distribution, both differentiable.

    Args:
        logits: `[..., V]` of any floating dtype; leading dimensions may be strided, as in `logits[:, :-1]`.
        targets: `[...]` int64 in `[0, V)`.
        temperature: divides the logits.
        inplace_backward: write the gradient over the logits themselves, which saves memory of their size. The
            logits are then destroyed by the backward pass, and a second backward through them raises.

    Returns:
        TokenLogprobs(logp, entropy), each `[...]` float32 (float64 for float64 logits), in nats. The arithmetic is
        in that dtype whatever the logits are. Rows whose incoming gradients are 0 get a gradient of exactly 0, and
        cost nothing.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: shapes that do not match, a target outside the vocabulary, a temperature that is not positive.
    """
    check_floating("token_logprobs", "logits", logits)
    check_rows("token_logprobs", "targets", targets, logits.shape[:-1])
    check_targets("token_logprobs", targets, logits.shape[-1])
    check_positive("token_logprobs", "temperature", temperature)
    targets_N = targets.reshape(-1)
    if uses_triton(logits):
        outputs = gpu.logprobs_of_live_rows(logits, targets_N, None, temperature, logits.shape[-1], inplace_backward)
    else:
        rows = torch.arange(targets.numel(), device=logits.device)
        outputs = logprobs_of_rows(logits, targets_N, rows, temperature, logits.shape[-1], inplace_backward)
    return TokenLogprobs(*(x_N.view(targets.shape) for x_N in outputs))


def logprobs_of_rows(
    logits: Tensor,
    targets_n: Tensor,
    rows_n: Tensor,
    temperature: float,
    vocab_size: int,
    inplace_backward: bool = False,
) -> tuple[Tensor, Tensor]:
    """logp and entropy `[n]` of some rows of `logits` `[..., V]` over its first `vocab_size` columns. Not checked.

    `rows_n` are distinct indices into the flattened leading dimensions, `targets_n` the targets of those rows.
    """
    logp_n, entropy_n = _TokenLogprobs.apply(logits, targets_n, rows_n, temperature, vocab_size, inplace_backward)
    return logp_n, entropy_n


class _TokenLogprobs(torch.autograd.Function):
    """Goes through the rows a slice at a time, and saves nothing of the logits' size but the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets_n: Tensor,
        rows_n: Tensor,
        temperature: float,
        vocab_size: int,
        inplace_backward: bool,
    ) -> tuple[Tensor, Tensor]:
        stats = RowStats.empty(len(rows_n), logits)
        for block in slices(len(rows_n), logits):
            logits_nV = logits[_index(rows_n[block], logits, vocab_size)]
            stats.store(block, row_stats(logits_nV, targets_n[block], temperature))
        ctx.save_for_backward(logits, targets_n, rows_n, *stats)
        ctx.temperature, ctx.vocab_size, ctx.inplace_backward = temperature, vocab_size, inplace_backward
        ctx.set_materialize_grads(False)
        return stats.logp_n, stats.entropy_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp_n: Tensor | None, grad_entropy_n: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, targets_n, rows_n, *saved = ctx.saved_tensors
        stats = RowStats(*saved)
        kept, grad_logp_n, grad_entropy_n = rows_with_gradient(stats, grad_logp_n, grad_entropy_n)
        if ctx.inplace_backward:
            # detach shares the version counter: a second backward finds the saved logits changed, and raises.
            grad_logits = logits.detach()
            left_out = torch.ones(logits.shape[:-1].numel(), dtype=torch.bool, device=logits.device)
            left_out[rows_n[kept]] = False
            grad_logits[left_out.view(logits.shape[:-1])] = 0
        else:
            grad_logits = torch.zeros_like(logits)
        for block in slices(len(kept), logits):
            n = kept[block]
            index = _index(rows_n[n], logits, ctx.vocab_size)
            grad_logits[index] = logits_gradient_(
                logits[index],
                targets_n[n],
                stats.select(n),
                ctx.temperature,
                grad_logp_n[n],
                None if grad_entropy_n is None else grad_entropy_n[n],
            )
        return grad_logits, None, None, None, None, None


def _index(rows_n: Tensor, logits: Tensor, vocab_size: int) -> tuple[Tensor | slice, ...]:
    """Rows of the flattened leading dimensions as an index into the (perhaps strided) logits."""
    return (*torch.unravel_index(rows_n, logits.shape[:-1]), slice(vocab_size))
