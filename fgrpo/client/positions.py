"""How far a model can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fgrpo.errors import TaskError


def check_positions(model: nn.Module, prompts: Sequence[str], mask_PL: Tensor, new_tokens: int) -> None:
    """Raise TaskError for a prompt that passes the model's positions.

    Rotary positions go on past what a model was trained on, so such a model would train on noise and say nothing.

    Args:
        mask_PL: 1 where a prompt's token is real.
        new_tokens: completion tokens that must have positions too.
    """
    limit = positions(model.config)
    if limit is None:
        return
    for prompt, length in zip(prompts, mask_PL.sum(dim=1).tolist(), strict=True):
        if length + new_tokens > limit:
            raise TaskError(
                f"prompt {prompt[:60]!r} has {length} tokens; with {new_tokens} new ones they pass the model's "
                f"{limit} positions: shorten the prompts, or lower rollout.max_new_tokens"
            )


def positions(config: Any) -> int | None:
    """Return how many tokens a model of this configuration reads at most; None if it has no such limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    # Stretched rotary positions: some configurations state the length before, some after.
    stretched = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    factor, before = stretched.get("factor"), stretched.get("original_max_position_embeddings", limit)
    return max(limit, int(factor * before)) if isinstance(factor, (int, float)) else limit
