"""Softmax statistics and gradients of a block of logits in PyTorch, for what neither a kernel nor the core serves.

The rows are worked through in slices small enough for a core's cache, with two float32 (or float64) work buffers of
one slice, so a block of logits of any dtype needs no full-size temporary.

    n rows of the block   V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Logits that the element-wise arithmetic takes at a time: small enough for a core's L2 cache, large enough that the
# calls do not count.
SLICE_BYTES = 2 << 20
# Under e^-1000 a probability is 0 in float64 too. A floor keeps 0 * -inf = NaN out of the entropy when logits are -inf.
LOWEST_LOG = -1000.0


class RowStats(NamedTuple):
    """Per row, `[n]`: log-probability of the target, entropy, and two numbers for the gradient.

    The log of a row's sum of exponentials is `peak / temperature + log_sum`: kernels keep the two apart for their
    digits; PyTorch's arithmetic here gives the whole of it as log_sum.
    """

    logp_n: Tensor
    entropy_n: Tensor
    peak_n: Tensor
    log_sum_n: Tensor

    @staticmethod
    def zeros(num_rows: int, dtype: torch.dtype, device: torch.device) -> RowStats:
        """For `num_rows` rows of logits of that dtype."""
        dtype = accumulation_dtype(dtype)
        return RowStats(*(torch.zeros(num_rows, dtype=dtype, device=device) for _ in RowStats._fields))

    def store(self, rows: Tensor | slice, part: RowStats) -> None:
        """Write the statistics of some of the rows."""
        for whole, values in zip(self, part, strict=True):
            whole[rows] = values

    def select(self, rows: Tensor | slice) -> RowStats:
        return RowStats(*(whole[rows] for whole in self))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_stats(logits_nV: Tensor, targets_n: Tensor, temperature: float) -> RowStats:
    """Statistics of `softmax(logits_nV / temperature)`."""
    stats = RowStats.zeros(len(targets_n), logits_nV.dtype, logits_nV.device)
    for rows, shifted, exps in _work_slices(logits_nV):
        scaled = _scaled(logits_nV[rows], temperature, shifted)
        highest = scaled.amax(-1, keepdim=True)
        torch.sub(scaled, highest, out=shifted)
        torch.exp(shifted, out=exps)
        # The sum leaves the target out, whose exponential is exactly 1 when it leads: 1 + (little) would lose digits
        # of the little, which is all there is of log p and of the gradient when the target is far ahead.
        column = targets_n[rows, None]
        target = shifted.gather(-1, column).squeeze(-1)
        others = exps.scatter_(-1, column, 0.0).sum(-1)
        log_sum = torch.log1p(others + torch.expm1(target))
        dots = shifted.clamp_(min=LOWEST_LOG).mul_(exps).sum(-1)
        dots += target.clamp(min=LOWEST_LOG) * target.exp()
        entropy = log_sum - dots / (others + target.exp())
        lse = highest.squeeze(-1) + log_sum
        stats.store(rows, RowStats(target - log_sum, entropy, torch.zeros_like(lse), lse))
    return stats


def logits_gradient_(
    logits_nV: Tensor,
    targets_n: Tensor,
    stats: RowStats,
    temperature: float,
    grad_logp_n: Tensor,
    grad_entropy_n: Tensor | None,
) -> Tensor:
    """Overwrite a block of logits with the gradient of a loss in them, given its gradients in logp and entropy.

    The statistics are those of `row_stats` here. With p the probabilities and g, e the two gradients:
    `d loss / d z_j = (g * (1[j = target] - p_j) - e * p_j * (log p_j + entropy)) / temperature`.
    """
    for rows, log_probs, exps in _work_slices(logits_nV):
        logits = logits_nV[rows]
        torch.sub(_scaled(logits, temperature, log_probs), stats.log_sum_n[rows, None], out=log_probs)
        grads = logits if logits.dtype == exps.dtype else exps
        torch.exp(log_probs, out=grads)
        logp, slope = stats.logp_n[rows], grad_logp_n[rows]
        # 1 - p loses all digits when the target has nearly all the probability; -expm1(log p) keeps them.
        at_target = slope * -torch.expm1(logp)
        if grad_entropy_n is None:
            grads.mul_((-slope / temperature)[:, None])
        else:
            entropy, entropy_slope = stats.entropy_n[rows], grad_entropy_n[rows]
            at_target -= entropy_slope * logp.exp() * (logp.clamp(min=LOWEST_LOG) + entropy)
            log_probs.clamp_(min=LOWEST_LOG).mul_(entropy_slope[:, None]).add_(
                (slope + entropy_slope * entropy)[:, None]
            )
            grads.mul_(log_probs).div_(-temperature)
        grads.scatter_(-1, targets_n[rows, None], (at_target / temperature)[:, None])
        logits.copy_(grads)  # nothing to do where they are the same tensor
    return logits_nV


def slices(num_rows: int, logits: Tensor) -> Iterator[slice]:
    """Consecutive slices over `num_rows` rows as wide as the logits', each small enough for a core's cache."""
    row_bytes = logits.shape[-1] * accumulation_dtype(logits.dtype).itemsize
    step = max(1, SLICE_BYTES // row_bytes)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def _scaled(logits_nV: Tensor, temperature: float, buffer: Tensor) -> Tensor:
    """`logits_nV / temperature` in the buffer's dtype: in the buffer, or the logits where they are just that."""
    if temperature == 1.0:
        return logits_nV if logits_nV.dtype == buffer.dtype else buffer.copy_(logits_nV)
    return buffer.copy_(logits_nV).div_(temperature)


def _work_slices(logits_nV: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Slices over the rows of a block, each with two work buffers of its shape."""
    dtype = accumulation_dtype(logits_nV.dtype)
    first = second = logits_nV.new_empty(0, logits_nV.shape[1], dtype=dtype)
    for rows in slices(len(logits_nV), logits_nV):
        size = rows.stop - rows.start
        if size > len(first):
            first, second = (logits_nV.new_empty(size, logits_nV.shape[1], dtype=dtype) for _ in range(2))
        yield rows, first[:size], second[:size]
