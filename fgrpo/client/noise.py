"""What a client makes of its delta so that nobody can tell from it what single data were."""

from __future__ import annotations

import secrets

import torch
from torch import Tensor

from fgrpo.config import PrivacyConfig


def private(delta_P: Tensor, config: PrivacyConfig) -> Tensor:
    """Return a delta, float32 [P], clipped to `clip` in its L2 norm, with Gaussian noise of `noise * clip` on it.

    The noise comes from the system's own randomness: the server knows the run's seed. What is not finite stays so.
    """
    norm = torch.linalg.vector_norm(delta_P, dtype=torch.float64)
    scale = (config.clip / norm.clamp(min=config.clip)).float()
    generator = torch.Generator().manual_seed(secrets.randbits(63))
    noise_P = torch.randn(delta_P.shape, generator=generator)
    return delta_P * scale + config.noise * config.clip * noise_P
