"""What `rowwise` computes, by the C++ core: a row's statistics in two passes over it, its gradient in one.

N rows   n those that are asked for   V vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgrpo_kernels.rowwise import RowStats

try:
    from fgrpo_kernels import _C
except ImportError:  # the ops by themselves, as the `kernels` package loads them
    serves_any = False
else:
    serves_any = True

_DTYPES = (torch.float32, torch.bfloat16)


def serves(logits: Tensor) -> bool:
    """Whether the core reads these logits where they are."""
    return serves_any and logits.device.type == "cpu" and logits.dtype in _DTYPES and logits.stride(-1) == 1


def row_stats(logits: Tensor, rows_n: Tensor | None, targets_n: Tensor, temperature: float) -> RowStats:
    """Statistics `[n]` of some rows of `logits` `[..., V]`, None for all; the targets are within `[0, V)`."""
    stats = RowStats.zeros(len(targets_n), logits.dtype, logits.device)
    starts_n, targets_n = _starts(logits, rows_n), targets_n.contiguous()
    _C.row_statistics(
        _rows(logits, starts_n), targets_n.data_ptr(), temperature, _addresses(stats), torch.get_num_threads()
    )
    return stats


def write_gradient(
    out: Tensor,
    logits: Tensor,
    rows_n: Tensor | None,
    targets_n: Tensor,
    stats: RowStats,
    temperature: float,
    grad_logp_n: Tensor,
    grad_entropy_n: Tensor | None,
) -> None:
    """Write the gradient of a loss in some rows of the logits `[..., V]`, None for all, to the same rows of `out`.

    Args:
        out: of the logits' shape and dtype, of any strides but the last; may be the logits.
        stats, grad_logp_n, grad_entropy_n: float32 `[n]`, the loss's gradients in logp and, if any, in entropy.
    """
    starts_n, out_starts_n = _starts(logits, rows_n), _starts(out, rows_n)
    targets_n, grad_logp_n = targets_n.contiguous(), grad_logp_n.contiguous()
    stats = RowStats(*(x_n.contiguous() for x_n in stats))
    grad_entropy_n = None if grad_entropy_n is None else grad_entropy_n.contiguous()
    _C.row_gradients(
        _rows(logits, starts_n),
        targets_n.data_ptr(),
        temperature,
        _addresses(stats),
        grad_logp_n.data_ptr(),
        0 if grad_entropy_n is None else grad_entropy_n.data_ptr(),
        _rows(out, out_starts_n),
        torch.get_num_threads(),
    )


def _starts(x: Tensor, rows_n: Tensor | None) -> Tensor:
    """int64 `[n]`: where rows of `x` `[..., V]` start, in items, whatever its strides."""
    if rows_n is None:
        rows_n = torch.arange(x.shape[:-1].numel(), device=x.device)
    starts_n = torch.zeros_like(rows_n)
    for along_n, stride in zip(torch.unravel_index(rows_n, x.shape[:-1]), x.stride(), strict=False):
        starts_n += along_n * stride
    return starts_n


def _rows(x: Tensor, starts_n: Tensor) -> tuple[int, bool, int, int, int]:
    return x.data_ptr(), x.dtype == torch.bfloat16, starts_n.data_ptr(), len(starts_n), x.shape[-1]


def _addresses(stats: RowStats) -> tuple[int, int, int, int]:
    return tuple(x_n.data_ptr() for x_n in stats)  # type: ignore[return-value]
