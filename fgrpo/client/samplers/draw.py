"""Drawing a token from logits: inverse-CDF sampling with one uniform number a token."""

from __future__ import annotations

import torch
from torch import Tensor


def uniforms(seed: int, steps: int, rows: int) -> Tensor:
    """Return float64 [steps, rows] on the CPU, in (0, 1]: a function of the seed, on whatever device they are used.

    Every row of every step has its own number, so which rows are still being decoded changes no draw.
    """
    generator = torch.Generator().manual_seed(seed)
    return 1.0 - torch.rand(steps, rows, dtype=torch.float64, generator=generator)


def draw(logits_AV: Tensor, temperature: float, uniform_A: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return tokens (int64 [A]) and their log-probabilities (float32 [A], nats) at a temperature.

    Args:
        uniform_A: float64 in (0, 1]; None takes the likeliest token instead.
    """
    tempered_AV = logits_AV.float() / temperature
    token_A = logits_AV.argmax(dim=-1) if uniform_A is None else _inverse_cdf(tempered_AV.softmax(dim=-1), uniform_A)
    return token_A, tempered_AV.log_softmax(dim=-1).gather(1, token_A[:, None])[:, 0]


def _inverse_cdf(probability_AV: Tensor, uniform_A: Tensor) -> Tensor:
    """Return the first token at which the cumulated probability reaches `uniform` times the total.

    In float64: float32 sums over a large vocabulary would move probability between tokens. As the number is above 0 and
    at most the total, a token of probability 0 is never the first.
    """
    cumulated_AV = probability_AV.cumsum(dim=-1, dtype=torch.float64)
    target_A1 = uniform_A[:, None] * cumulated_AV[:, -1:]
    token_A = torch.searchsorted(cumulated_AV, target_A1)[:, 0]
    return token_A.clamp_max(probability_AV.shape[1] - 1)  # NaN reaches nothing
