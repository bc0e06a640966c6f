"""Log-probability of each target and entropy of each row of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrpo_kernels.checks import check_floating, check_positive, check_rows, check_targets
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
    return TokenLogprobs(*logprobs_of_rows(logits, targets, None, temperature, inplace_backward))


def logprobs_of_rows(
    logits: Tensor, targets: Tensor, rows: Tensor | None, temperature: float, inplace_backward: bool = False
) -> tuple[Tensor, Tensor]:
    """logp and entropy of some rows of `logits`, without a copy of them: `[...]` for `rows=None`, else `[n]`.

    Args:
        logits: `[..., V]`, not checked.
        targets: `[...]` for `rows=None`, else those of the rows, `[n]`.
        rows: int64 `[n]`, distinct indices into the flattened leading dimensions; None for all of them.
    """
    logp, entropy = _TokenLogprobs.apply(logits, targets.reshape(-1), rows, temperature, inplace_backward)
    return (logp, entropy) if rows is not None else (logp.view(targets.shape), entropy.view(targets.shape))


class _TokenLogprobs(torch.autograd.Function):
    """Goes through the rows a slice at a time, and saves nothing of the logits' size but the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets_n: Tensor, rows_n: Tensor | None, temperature: float, inplace_backward: bool
    ) -> tuple[Tensor, Tensor]:
        if rows_n is None:
            rows_n = torch.arange(len(targets_n), device=logits.device)
        stats = RowStats.empty(len(rows_n), logits)
        for block in slices(len(rows_n), logits):
            stats.store(block, row_stats(logits[_index(rows_n[block], logits)], targets_n[block], temperature))
        ctx.save_for_backward(logits, targets_n, rows_n, *stats)
        ctx.temperature = temperature
        ctx.inplace_backward = inplace_backward
        ctx.set_materialize_grads(False)
        return stats.logp_n, stats.entropy_n

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logp_n: Tensor | None, grad_entropy_n: Tensor | None
    ) -> tuple[Tensor | None, None, None, None, None]:
        logits, targets_n, rows_n, *saved = ctx.saved_tensors
        stats = RowStats(*saved)
        kept, grad_logp_n, grad_entropy_n = rows_with_gradient(stats, grad_logp_n, grad_entropy_n)
        # detach shares the version counter: a second backward finds the saved logits changed, and raises.
        grad_logits = logits.detach() if ctx.inplace_backward else torch.zeros_like(logits)
        if ctx.inplace_backward:
            left_out = torch.ones(logits.shape[:-1].numel(), dtype=torch.bool, device=logits.device)
            left_out[rows_n[kept]] = False
            grad_logits[left_out.view(logits.shape[:-1])] = 0
        for block in slices(len(kept), logits):
            n = kept[block]
            index = _index(rows_n[n], logits)
            grad_logits[index] = logits_gradient_(
                logits[index],
                targets_n[n],
                stats.select(n),
                ctx.temperature,
                grad_logp_n[n],
                None if grad_entropy_n is None else grad_entropy_n[n],
            )
        return grad_logits, None, None, None, None


def _index(rows_n: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
    """Rows of the flattened leading dimensions as an index into the (perhaps strided) logits."""
    return torch.unravel_index(rows_n, logits.shape[:-1])
