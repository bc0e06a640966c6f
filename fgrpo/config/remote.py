"""Clients on machines that are not ours: how long they are waited for, and what of their replies is believed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FlowerConfig:
    """Clients on the nodes of a Flower federation; nothing else reads it. See `docs/deploy.md`.

    Args:
        min_clients: clients that must have come before the run starts.
        deadline: seconds after which a round goes on without those who have not answered; null waits for everybody.
        min_replies: answers without which no round closes: whoever owes one is asked again.
    """

    min_clients: int = 2
    deadline: float | None = None
    min_replies: int = 1


@dataclass(frozen=True)
class LimitsConfig:
    """What no honest reply of another machine exceeds; one that does is quarantined.

    Counts are held against the rest of the configuration, too.

    Args:
        step: the longest delta, in units of what AdamW can move all parameters by in a round
            (optimiser steps * train.lr * root of their number); null for any.
        rows: the most training rows that a client may claim.
        reward: the largest size of a reward's mean and standard deviation, and of a held-out score's.
    """

    step: float | None = 10.0
    rows: int = 10**9
    reward: float = 1e6
