"""Every published reduction of a token loss, as a weight per token."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from fgrpo_kernels import reference
from fgrpo_kernels.checks import can_look_at, check_tensors

Reduction = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo"]


def token_weights(
    mask: Tensor,
    reduction: Reduction = "dapo",
    *,
    num_tokens: float | Tensor | None = None,
    num_sequences: float | Tensor | None = None,
    max_length: int | None = None,
    divisor: float | Tensor = 1.0,
) -> Tensor:
    """`weights` for `grpo_loss`, such that `sum(weights * loss)` is the reduction.

    | reduction | weight of a token with mask 1 | that is |
    |---|---|---|
    | "grpo" | `1 / (length * num_sequences)` | mean over sequences of the mean over their tokens |
    | "bnpo" | `1 / sum(mask)` | mean over this batch's tokens |
    | "dr_grpo" | `1 / (num_sequences * max_length)` | sum over a constant |
    | "dapo" | `1 / num_tokens` | mean over the tokens of the global batch |
    | "luspo" | `1 / num_sequences` | mean over sequences of the sum over their tokens |

    Args:
        mask: `[B, T]` bool or 0/1, the completions' tokens.
        num_tokens: tokens of the global batch; default: this batch's, `sum(mask)`.
        num_sequences: sequences of the global batch; default: B, fully masked ones included (as TRL does;
            to leave them out pass `mask.any(1).sum()`).
        max_length: the longest allowed completion, in tokens; default: T, which changes with the padding.
        divisor: what the loss is to be divided by, such as the micro-batches of a step. Here it is free; a loss that
            is divided later has its gradient, as large as the logits, read and written once more.

    The normalisers are facts about the training step, not requests: give all that you know, and each reduction uses
    those in its row of the table. So a trainer passes the same arguments whatever its `loss_type`.

    With data or accumulation steps in parallel, pass normalisers of the whole step; if gradients are then *averaged*
    over W workers (DDP), pass them divided by W.

    Returns:
        `[B, T]` float32, exactly 0 where the mask is.

    Example:
        >>> token_weights(torch.tensor([[1, 1, 0], [1, 0, 0]]), "grpo")
        tensor([[0.2500, 0.2500, 0.0000],
                [0.5000, 0.0000, 0.0000]])

    Raises:
        ValueError: an unknown reduction, a normaliser that is not positive (a tensor's value is looked at on the CPU
            only, and not while compiling), a wrong shape.
    """
    check_tensors("token_weights", mask=mask)
    if mask.ndim != 2:
        raise ValueError(f"token_weights: mask must be [B, T], got {list(mask.shape)}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"token_weights: reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
    given = {
        "num_tokens": num_tokens,
        "num_sequences": num_sequences,
        "max_length": max_length,
        "divisor": divisor,
    }
    for name, value in given.items():
        if value is None or (isinstance(value, Tensor) and not can_look_at(value)):
            continue
        if value <= 0:
            raise ValueError(f"token_weights: {name} must be positive, got {value}")
    return reference.token_weights(
        mask,
        reduction,
        num_tokens=num_tokens,
        num_sequences=num_sequences,
        max_length=max_length,
        divisor=divisor,
    )
