"""What happens to a block of logits between the matrix products: statistics forwards, a gradient in place backwards.

n rows   V vocabulary
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels import rowwise
from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu import head_rows as gpu
from fgrpo_kernels.gpu.token_logprobs import launch_backward, launch_forward
from fgrpo_kernels.head.blocks import Block
from fgrpo_kernels.objectives import device_form
from fgrpo_kernels.policy_terms import PolicyTerms
from fgrpo_kernels.rowwise import RowStats, accumulation_dtype


class HeadStats(NamedTuple):
    """Per row, `[n]`: log-probability of the target, entropy, and two numbers for the gradient.

    The log of a row's sum of exponentials is `peak / temperature + log_sum` from a kernel, which keeps the two apart
    for their digits; the PyTorch path gives the whole of it as log_sum.
    """

    logp_n: Tensor
    entropy_n: Tensor
    peak_n: Tensor
    log_sum_n: Tensor

    @staticmethod
    def zeros(num_rows: int, dtype: torch.dtype, device: torch.device) -> HeadStats:
        """For `num_rows` rows of logits of that dtype."""
        dtype = accumulation_dtype(dtype)
        return HeadStats(*(torch.zeros(num_rows, dtype=dtype, device=device) for _ in HeadStats._fields))

    def select(self, rows: Tensor | slice) -> HeadStats:
        return HeadStats(*(x_n[rows] for x_n in self))


def write_stats_and_gradient(out: HeadStats, block: Block, temperature: float, terms: PolicyTerms) -> None:
    """Both at once, for a loss that depends on these rows alone; `terms` are those of these rows."""
    logits_nV, targets_n = block.logits_nV, block.targets_n
    form = device_form(terms.objective) if uses_triton(logits_nV) and not terms.objective.sequence_level else None
    if form is not None:
        gpu.overwrite_with_loss_gradient(logits_nV, targets_n, terms, form, temperature, out.logp_n, out.entropy_n)
    elif uses_triton(logits_nV) or terms.entropy_coef != 0 or logits_nV.dtype != accumulation_dtype(logits_nV.dtype):
        write_stats(out, block, temperature)
        overwrite_with_gradient(block, out, temperature, *terms.gradients(out.logp_n, out.entropy_n))
    else:
        stats = rowwise.row_stats(logits_nV, targets_n, temperature, leave_exps=True)
        out.logp_n.copy_(stats.logp_n)
        out.entropy_n.copy_(stats.entropy_n)
        grad_logp_n, _ = terms.gradients(stats.logp_n, stats.entropy_n)
        rowwise.exps_to_gradient_(logits_nV, targets_n, stats, temperature, grad_logp_n)


def write_stats(out: HeadStats, block: Block, temperature: float) -> None:
    """Write the statistics of the block's rows."""
    if uses_triton(block.logits_nV):
        launch_forward(block.logits_nV, block.targets_n, None, temperature, block.logits_nV.shape[1], out)
        return
    lse_n, logp_n, entropy_n = rowwise.row_stats(block.logits_nV, block.targets_n, temperature)
    for whole, part in zip(out, (logp_n, entropy_n, torch.zeros_like(lse_n), lse_n), strict=True):
        whole.copy_(part)


def overwrite_with_gradient(
    block: Block, stats: HeadStats, temperature: float, grad_logp_n: Tensor, grad_entropy_n: Tensor | None
) -> None:
    """Turn the block's logits into their gradient, given a loss's gradients in the rows' logp and entropy."""
    if uses_triton(block.logits_nV):
        logits_nV = block.logits_nV
        slopes = (grad_logp_n, grad_entropy_n, temperature, logits_nV.shape[1])
        launch_backward(logits_nV, logits_nV, block.targets_n, stats, *slopes)
    else:
        rowwise.logits_gradient_(
            block.logits_nV,
            block.targets_n,
            RowStats(stats.log_sum_n, stats.logp_n, stats.entropy_n),
            temperature,
            grad_logp_n,
            grad_entropy_n,
        )
