"""The specification: each op in plain PyTorch, with the signature of the public one.

No kernels, no blocks, no checks of arguments; any device, float64 where the inputs are. Tests hold every other path
to these, and benchmarks take them as the baseline.
"""

from fgrpo_kernels.reference.group_advantages import group_advantages
from fgrpo_kernels.reference.grpo_loss import grpo_loss
from fgrpo_kernels.reference.linear_grpo_loss import linear_grpo_loss
from fgrpo_kernels.reference.linear_token_logprobs import linear_token_logprobs
from fgrpo_kernels.reference.partial_token_stats import partial_token_stats
from fgrpo_kernels.reference.token_logprobs import token_logprobs
from fgrpo_kernels.reference.token_weights import token_weights

__all__ = [
    "group_advantages",
    "grpo_loss",
    "linear_grpo_loss",
    "linear_token_logprobs",
    "partial_token_stats",
    "token_logprobs",
    "token_weights",
]
