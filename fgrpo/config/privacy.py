"""Differential privacy of what clients send."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrivacyConfig:
    """Every client clips its delta and adds Gaussian noise before it is compressed. See `docs/security.md`.

    Args:
        clip: the largest L2 norm that a delta keeps.
        noise: standard deviation of the noise on each parameter, in units of `clip`.
        delta: the probability at which the run's epsilon is told.
    """

    clip: float
    noise: float
    delta: float = 1e-5
