"""GRPO's mathematics as PyTorch ops that any trainer can use: advantages, log-probabilities, losses.

Needs torch alone, and Triton where there is a GPU. The delta codec is in `fgrpo_kernels.codec`; the specification of
every op in `fgrpo_kernels.reference`.
"""

from fgrpo_kernels.group_advantages import group_advantages
from fgrpo_kernels.grpo_loss import grpo_loss
from fgrpo_kernels.linear_grpo_loss import linear_grpo_loss
from fgrpo_kernels.linear_token_logprobs import linear_token_logprobs
from fgrpo_kernels.objectives import CISPO, GMPO, SAPO, VESPO, Objective, PPOClip
from fgrpo_kernels.partial_token_stats import merge_token_stats, partial_token_stats
from fgrpo_kernels.policy_factors import importance_weights, off_policy_mask, top_entropy_mask
from fgrpo_kernels.results import GroupAdvantages, GRPOLoss, PartialTokenStats, TokenLogprobs
from fgrpo_kernels.token_logprobs import token_logprobs
from fgrpo_kernels.token_weights import token_weights

__all__ = [
    "CISPO",
    "GMPO",
    "SAPO",
    "VESPO",
    "GRPOLoss",
    "GroupAdvantages",
    "Objective",
    "PPOClip",
    "PartialTokenStats",
    "TokenLogprobs",
    "group_advantages",
    "grpo_loss",
    "importance_weights",
    "linear_grpo_loss",
    "linear_token_logprobs",
    "merge_token_stats",
    "off_policy_mask",
    "partial_token_stats",
    "token_logprobs",
    "token_weights",
    "top_entropy_mask",
]


def __dir__() -> list[str]:
    """What a person may call: not the modules that hold it."""
    return sorted(__all__)
