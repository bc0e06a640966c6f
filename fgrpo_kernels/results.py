"""What the public ops return. Named tuples: read by name or unpack."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GroupAdvantages(NamedTuple):
    """Advantages of B completions in S groups.

    Attributes:
        advantages: `[B]`, exactly 0 for rows of a degenerate group and for rows without a reward.
        mean: `[S]`, mean reward of each group (NaN where no row has a reward).
        std: `[S]`, each group's own standard deviation, with Bessel's correction, whatever `scale` is
            (0 for a degenerate group).
        degenerate: `[S]` bool, True where all rewards of the group are equal, or fewer than two are there.
    """

    advantages: Tensor
    mean: Tensor
    std: Tensor
    degenerate: Tensor


class TokenLogprobs(NamedTuple):
    """Per row: log-probability of the target and entropy of the distribution, both in nats and differentiable.

    float32, or float64 for float64 inputs; the shape of the targets.
    """

    logp: Tensor
    entropy: Tensor


class PartialTokenStats(NamedTuple):
    """What one shard of the vocabulary knows of each row, in units of logit / temperature; the shape of the targets.

    float32, or float64 for float64 inputs. All but `peak` are differentiable.

    Attributes:
        peak: highest logit of the shard, without gradient.
        others: sum of `exp(logit - peak)` over the shard without the target.
        dot: sum of `exp(logit - peak) * (logit - peak)` over the same.
        target: the target's logit; -inf if it is in another shard.
    """

    peak: Tensor
    others: Tensor
    dot: Tensor
    target: Tensor


class GRPOLoss(NamedTuple):
    """A scalar loss to call `backward` on, and detached 0-d metrics by name (see `grpo_loss` for the names)."""

    loss: Tensor
    metrics: dict[str, Tensor]
