"""Right arguments of every op, by name: for tests of what all ops do with tensors of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels import (
    group_advantages,
    grpo_loss,
    importance_weights,
    linear_grpo_loss,
    linear_token_logprobs,
    merge_token_stats,
    partial_token_stats,
    token_logprobs,
    token_weights,
)

B, T, V, H = 2, 3, 7, 4
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])

# What an op is differentiable in.
LEAVES: dict[Callable[..., Any], tuple[str, ...]] = {
    token_logprobs: ("logits",),
    linear_token_logprobs: ("hidden", "weight", "bias"),
    partial_token_stats: ("logits_shard",),
    grpo_loss: ("logits",),
    linear_grpo_loss: ("hidden", "weight", "bias"),
    group_advantages: (),
    token_weights: (),
    importance_weights: (),
}


def arguments(op: Callable[..., Any]) -> dict[str, Any]:
    """Fresh ones, without gradient."""
    rng = torch.Generator().manual_seed(0)
    rows = {"targets": torch.randint(V, (B, T), generator=rng)}
    head = {name: torch.randn(*shape, generator=rng) for name, shape in (("hidden", (B, T, H)), ("weight", (V, H)))}
    logits = torch.randn(B, T, V, generator=rng)
    loss = {
        "advantages": torch.tensor([1.0, -1.0]),
        "weights": token_weights(MASK),
        "old_logp": -torch.rand(B, T, generator=rng) - 1,
        "ref_logp": -torch.rand(B, T, generator=rng) - 1,
        "policy_factor": torch.rand(B, T, generator=rng) + 0.5,
        "mask": MASK.clone(),
    }
    return {
        token_logprobs: {"logits": logits, **rows},
        linear_token_logprobs: {**head, **rows, "bias": torch.zeros(V), "row_mask": MASK.clone()},
        partial_token_stats: {"logits_shard": logits, **rows, "vocab_start": 0},
        grpo_loss: {"logits": logits, **rows, **loss, "beta": 0.1},
        linear_grpo_loss: {**head, **rows, **loss, "bias": torch.zeros(V), "beta": 0.1},
        group_advantages: {"rewards": torch.rand(4, generator=rng), "group_ids": torch.tensor([0, 1, 0, 1])},
        token_weights: {"mask": MASK.clone()},
        importance_weights: {"old_logp": -MASK, "sampling_logp": -2 * MASK, "mask": MASK.clone()},
    }[op]


def scalar(op: Callable[..., Any], **given: Any) -> Tensor:
    """One number that depends on everything that comes out and may be differentiated."""
    result = op(**given)
    if hasattr(result, "loss"):
        return result.loss
    if hasattr(result, "peak"):
        result = merge_token_stats([result])
    outputs = (result,) if isinstance(result, Tensor) else result
    return sum((x * torch.arange(1, x.numel() + 1).view(x.shape)).sum() for x in outputs)
