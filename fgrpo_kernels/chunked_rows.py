"""`token_logprobs` without Triton: by the C++ core, or in PyTorch a slice of rows at a time.

Nothing is of the logits' size but the logits.

N rows   n those that are live
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgrpo_kernels import native_rows
from fgrpo_kernels.rowwise import RowStats, logits_gradient_, row_stats, slices


def chunked_forward(
    logits: Tensor, targets_N: Tensor, live_N: Tensor | None, temperature: float, vocab_size: int
) -> RowStats:
    """Statistics `[N]` of the live rows of `logits` `[..., V]` over its first `vocab_size` columns; 0 of the others."""
    stats = RowStats.zeros(targets_N.numel(), logits.dtype, logits.device)
    rows_n = _indices(live_N, targets_N)
    if native_rows.serves(logits):
        part = native_rows.row_stats(logits[..., :vocab_size], rows_n, targets_N[rows_n], temperature)
        stats.store(rows_n, part)
        return stats
    for block in slices(len(rows_n), logits):
        n = rows_n[block]
        stats.store(n, row_stats(logits[_index(n, logits, vocab_size)], targets_N[n], temperature))
    return stats


def chunked_backward_(
    grad_logits: Tensor,
    logits: Tensor,
    targets_N: Tensor,
    stats: RowStats,
    grad_logp_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> None:
    """Write the gradient to `grad_logits`, which may be the logits themselves.

    It is exactly 0 in rows whose incoming gradients are 0, even where their logits are NaN.
    """
    if grad_logp_N is None:
        grad_logp_N = torch.zeros_like(stats.logp_n)
    kept_N = grad_logp_N != 0
    if grad_entropy_N is not None:
        kept_N = kept_N | (grad_entropy_N != 0)
    grad_logits[..., vocab_size:] = 0
    grad_logits[_index(_indices(~kept_N, targets_N), logits, vocab_size)] = 0
    rows_n = _indices(kept_N, targets_N)
    if native_rows.serves(logits) and native_rows.serves(grad_logits):
        grad_entropy_n = None if grad_entropy_N is None else grad_entropy_N[rows_n]
        slopes = (grad_logp_N[rows_n], grad_entropy_n)
        to, of = grad_logits[..., :vocab_size], logits[..., :vocab_size]
        native_rows.write_gradient(to, of, rows_n, targets_N[rows_n], stats.select(rows_n), temperature, *slopes)
        return
    for block in slices(len(rows_n), logits):
        n = rows_n[block]
        index = _index(n, logits, vocab_size)
        grad_logits[index] = logits_gradient_(
            logits[index],
            targets_N[n],
            stats.select(n),
            temperature,
            grad_logp_N[n],
            None if grad_entropy_N is None else grad_entropy_N[n],
        )


def _indices(live_N: Tensor | None, targets_N: Tensor) -> Tensor:
    if live_N is None:
        return torch.arange(targets_N.numel(), device=targets_N.device)
    return live_N.nonzero().squeeze(1)


def _index(rows_n: Tensor, logits: Tensor, vocab_size: int) -> tuple[Tensor | slice, ...]:
    """Rows of the flattened leading dimensions as an index into the (perhaps strided) logits."""
    return (*torch.unravel_index(rows_n, logits.shape[:-1]), slice(vocab_size))
