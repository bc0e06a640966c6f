"""Factors of the policy term: what `grpo_loss` takes as `policy_factor`. Several multiply.

B sequences   T tokens
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fgrpo_kernels.checks import check_positive, check_rows, check_tensors
from fgrpo_kernels.objectives.base import Level, bounded_exp

Mode = Literal["truncate", "mask"]


def importance_weights(
    old_logp: Tensor,
    sampling_logp: Tensor,
    mask: Tensor,
    *,
    mode: Mode = "truncate",
    level: Level = "token",
    cap: float = 3.0,
    floor: float = 0.0,
) -> Tensor:
    """How much likelier the trainer holds the tokens than the engine that sampled them did.

    Args:
        old_logp: `[B, T]`, by the trainer, of the policy that sampled.
        sampling_logp: `[B, T]`, by the engine that sampled. NaN where it has none: no correction there.
        mask: `[B, T]` bool or 0/1, the completions' tokens.
        mode: a ratio over the cap or under the floor is held there ("truncate") or counts 0 ("mask").
        level: of each "token", or the product over the "sequence", for all its tokens.
        cap: highest ratio.
        floor: lowest ratio.

    Returns:
        `[B, T]` or, at sequence level, `[B, 1]`, float32 (float64 for float64 inputs), without gradient.
        Outside the mask a token's weight is 1.

    Example:
        >>> trainer, engine = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -3.0]])
        >>> importance_weights(trainer, engine, mask=torch.tensor([[1, 1]]), cap=3.0)
        tensor([[1., 3.]])

    Raises:
        ValueError: unknown options, shapes that do not match, a cap that is not positive, a floor not in [0, cap].
    """
    _check_choice("importance_weights", "mode", mode, get_args(Mode))
    _check_choice("importance_weights", "level", level, get_args(Level))
    check_positive("importance_weights", "cap", cap)
    if not 0 <= floor <= cap:
        raise ValueError(f"importance_weights: floor must be from 0 to the cap, {cap}, got {floor}")
    check_tensors("importance_weights", old_logp=old_logp, sampling_logp=sampling_logp, mask=mask)
    _check_padded("importance_weights", mask, old_logp=old_logp, sampling_logp=sampling_logp)
    dtype = torch.promote_types(torch.promote_types(old_logp.dtype, sampling_logp.dtype), torch.float32)
    log_ratio = old_logp.detach().to(dtype) - sampling_logp.detach().to(dtype)
    log_ratio = torch.where((mask != 0) & ~log_ratio.isnan(), log_ratio, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True)
    ratio = bounded_exp(log_ratio)
    return ratio.clamp(floor, cap) if mode == "truncate" else torch.where((ratio > cap) | (ratio < floor), 0.0, ratio)


def off_policy_mask(
    logp: Tensor, sampling_logp: Tensor, advantages: Tensor, mask: Tensor, *, threshold: float
) -> Tensor:
    """Leaves out bad completions that the policy has moved away from (DeepSeek-V3.2).

    Args:
        logp: `[B, T]` of the policy being trained.
        sampling_logp: `[B, T]` of the policy that sampled. NaN where it is not known: no distance there.
        advantages: `[B]` or `[B, 1]`.
        mask: `[B, T]` bool or 0/1, the completions' tokens.
        threshold: in nats a token: the highest mean of `sampling_logp - logp` over a sequence.

    Returns:
        `[B, 1]` float32: 0 for sequences over the threshold whose advantage is negative, else 1.

    Example:
        >>> logp, engine = torch.tensor([[-4.0], [-4.0]]), torch.tensor([[-1.0], [-1.0]])
        >>> off_policy_mask(logp, engine, torch.tensor([1.0, -1.0]), mask=torch.tensor([[1], [1]]), threshold=2.0)
        tensor([[1.],
                [0.]])

    Raises:
        ValueError: shapes that do not match.
    """
    check_tensors("off_policy_mask", logp=logp, sampling_logp=sampling_logp, advantages=advantages, mask=mask)
    _check_padded("off_policy_mask", mask, logp=logp, sampling_logp=sampling_logp)
    if advantages.shape not in ((len(mask),), (len(mask), 1)):
        raise ValueError(f"off_policy_mask: advantages must be [B] or [B, 1], got {list(advantages.shape)}")
    inside = mask != 0
    distance = (sampling_logp - logp).detach()
    distance = torch.where(inside & ~distance.isnan(), distance, 0.0)
    mean = distance.sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)
    return ((advantages.view(-1, 1) >= 0) | (mean <= threshold)).to(torch.float32)


def top_entropy_mask(entropy: Tensor, mask: Tensor, *, fraction: float = 0.2) -> Tensor:
    """Keeps the tokens at which the policy was least sure (arXiv 2506.01939).

    Args:
        entropy: `[B, T]` in nats.
        mask: `[B, T]` bool or 0/1, the completions' tokens.
        fraction: of this batch's tokens to keep, over 0 and up to 1.

    Returns:
        `[B, T]` float32, 1 at tokens of the mask whose entropy is at or over the quantile `1 - fraction`, else 0.

    Example:
        >>> top_entropy_mask(torch.tensor([[0.1, 2.0, 0.3, 1.0]]), mask=torch.tensor([[1, 1, 1, 1]]), fraction=0.5)
        tensor([[0., 1., 0., 1.]])

    Raises:
        ValueError: shapes that do not match, a fraction outside its range.
    """
    check_tensors("top_entropy_mask", entropy=entropy, mask=mask)
    _check_padded("top_entropy_mask", mask, entropy=entropy)
    if not 0 < fraction <= 1:
        raise ValueError(f"top_entropy_mask: fraction must be over 0 and up to 1, got {fraction}")
    inside = mask != 0
    values = torch.where(inside, entropy.detach().float(), torch.nan).flatten()
    # Sorted by hand: torch.quantile takes no more than 16 million tokens. NaN sorts last.
    position = (1 - fraction) * (inside.sum() - 1).clamp(min=0)
    ordered = torch.nn.functional.pad(values.sort().values, (0, 1), value=torch.nan)
    below, above = (ordered.index_select(0, at.long().view(1)) for at in (position.floor(), position.ceil()))
    quantile = torch.lerp(below, above, (position - position.floor()).to(below.dtype))
    return (inside & (entropy >= quantile)).to(torch.float32)


def _check_padded(op: str, mask: Tensor, **others: Tensor) -> None:
    if mask.ndim != 2:
        raise ValueError(f"{op}: mask must be [B, T], got {list(mask.shape)}")
    for name, x in others.items():
        check_rows(op, name, x, mask.shape)


def _check_choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {value!r}")
