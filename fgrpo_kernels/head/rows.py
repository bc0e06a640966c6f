"""What happens to a block of logits between the matrix products: statistics forwards, a gradient in place backwards.

n rows   V vocabulary
"""

from __future__ import annotations

from torch import Tensor

from fgrpo_kernels import native_rows, rowwise
from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu import head_rows as gpu
from fgrpo_kernels.gpu.token_logprobs import launch_backward, launch_forward
from fgrpo_kernels.head.blocks import Block
from fgrpo_kernels.objectives import device_form
from fgrpo_kernels.policy_terms import PolicyTerms
from fgrpo_kernels.rowwise import RowStats


def write_stats_and_gradient(out: RowStats, block: Block, temperature: float, terms: PolicyTerms) -> None:
    """Both at once, for a loss that depends on these rows alone; `terms` are those of these rows."""
    logits_nV, targets_n = block.logits_nV, block.targets_n
    form = device_form(terms.objective) if uses_triton(logits_nV) and not terms.objective.sequence_level else None
    if form is not None:
        gpu.overwrite_with_loss_gradient(logits_nV, targets_n, terms, form, temperature, out.logp_n, out.entropy_n)
    else:
        write_stats(out, block, temperature)
        overwrite_with_gradient(block, out, temperature, *terms.gradients(out.logp_n, out.entropy_n))


def write_stats(out: RowStats, block: Block, temperature: float) -> None:
    """Write the statistics of the block's rows."""
    logits_nV, targets_n = block.logits_nV, block.targets_n
    if uses_triton(logits_nV):
        launch_forward(logits_nV, targets_n, None, temperature, logits_nV.shape[1], out)
    elif native_rows.serves(logits_nV):
        out.store(slice(None), native_rows.row_stats(logits_nV, None, targets_n, temperature))
    else:
        out.store(slice(None), rowwise.row_stats(logits_nV, targets_n, temperature))


def overwrite_with_gradient(
    block: Block, stats: RowStats, temperature: float, grad_logp_n: Tensor, grad_entropy_n: Tensor | None
) -> None:
    """Turn the block's logits into their gradient, given a loss's gradients in the rows' logp and entropy."""
    logits_nV, targets_n = block.logits_nV, block.targets_n
    slopes = (grad_logp_n, grad_entropy_n)
    if uses_triton(logits_nV):
        launch_backward(logits_nV, logits_nV, targets_n, stats, *slopes, temperature, logits_nV.shape[1])
    elif native_rows.serves(logits_nV):
        native_rows.write_gradient(logits_nV, logits_nV, None, targets_n, stats, temperature, *slopes)
    else:
        rowwise.logits_gradient_(logits_nV, targets_n, stats, temperature, *slopes)
