"""The least and the most that a client may weigh, whatever it reports."""

from __future__ import annotations

from collections.abc import Sequence

from fgrpo.server.aggregation.base import normalised

_ROUNDING = 1e-12


def bounded(weights: Sequence[float], cap: float, floor: float = 0.0) -> list[float]:
    """Return weights in proportion to the given ones, but that none lies above the cap or under the floor.

    Args:
        weights: at least 0, together 1.
        cap: the largest weight, from 0 to 1; raised to 1/K where so few clients could not fill it.
        floor: the least weight as a part of an equal share, from 0 to 1: 0.5 keeps everybody at 0.5/K.

    Returns:
        `clamp(scale * weight, floor / K, cap)` with the scale at which they sum to 1.
    """
    number = len(weights)
    low, high = floor / number, max(cap, 1 / number)
    held: dict[int, float] = {}
    while free := [k for k in range(number) if k not in held]:
        rest = 1 - sum(held[k] for k in sorted(held))
        result = held | dict(zip(free, (rest * share for share in normalised([weights[k] for k in free])), strict=True))
        over = {k: high for k in free if result[k] > high * (1 + _ROUNDING)}
        under = {k: low for k in free if result[k] < low * (1 - _ROUNDING)}
        if not over and not under:
            return [result[k] for k in range(number)]
        # Whoever breaks its bound by more in sum decides the direction in which the scale moves: those are held.
        excess = sum(result[k] - high for k in over) - sum(low - result[k] for k in under)
        held |= over if excess >= 0 else under
    return [held[k] for k in range(number)]
