"""What becomes of clients' deltas: how they are compressed, weighed, combined and applied, and who sends one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fgrpo.config.data import TaskConfig


@dataclass(frozen=True)
class CodecConfig:
    """How a client's delta is compressed.

    Args:
        codec: `int8`, `int4`, `int2`, `bf16`, or `none` for float32.
        block: parameters that share one 16-bit scale; a power of two from 32 to 1024.
        rounding: to the `nearest` code, or `stochastic`, which is unbiased: for clients that keep no residual.
        scale: of a block, by its largest value (`absmax`) or by the least squared error (`mse`: at int4 a fifth less
            error, at int2 half; with `nearest` only).
        error_feedback: add what rounding lost to the client's next delta.
    """

    codec: Literal["int8", "int4", "int2", "bf16", "none"] = "int4"
    block: int = 64
    rounding: Literal["nearest", "stochastic"] = "nearest"
    scale: Literal["absmax", "mse"] = "absmax"
    error_feedback: bool = True


@dataclass(frozen=True)
class AggregationConfig:
    """How clients are weighed, and their deltas combined. See `docs/aggregation.md` and `docs/robust.md`.

    Args:
        rule: how clients are weighed; `fgrpo rules` lists them, and `docs/aggregation.md` says why this is the default.
        n_k: what a client's share is counted by in `fgrpo`, `fedavg` and `reward`: its training `rows`, as FedAvg was
            published (`sequences` where a client has no such number, as reasoning-gym's tasks never end), or, of the
            round, the `sequences` or `tokens` that it trained on or the sequences in `informative` groups, whose
            rewards differed.
        tau: where gains weigh, in fgrpo, lagging and, with gain server, agreement: temperature of the weights; smaller
            follows the gain more sharply.
        clip: where gains weigh: bound on the relative gain.
        cap: fgrpo, informative, agreement, lagging: the largest weight that one client may have (at least 1/K).
        floor: of the same: the least weight, as a part of an equal share 1/K.
        decay: how much of a moving average survives a round: of a client's baseline, deviation and agreement.
        scale: where gains weigh: what makes a gain relative: the client's own baseline, its own running deviation, or
            the standard error of a round's mean reward.
        smoothing: where gains weigh: how much of a client's earlier gains stays in its gain.
        gain: what a gain is measured on: the `reward` of a client's training; its `heldout` score, which it measures
            after training, greedily; or the `server`'s own score of the global model with and without the client's
            delta, on public prompts.
        gain_prompts: heldout, server: prompts that each such score is measured on.
        gain_tasks: server: the tasks of the public prompts. No client trains on one of them.
        robust: `none` is the rule's weighted mean; `clipped_mean` the same of deltas clipped to `max_norm`;
            `trimmed_mean` and `median` are per parameter and count every client the same, whatever the rule.
        max_norm: clipped_mean: the largest L2 norm that a client's delta keeps.
        trim: trimmed_mean: clients dropped at each end, so many may be hostile.
    """

    rule: Literal["agreement", "fgrpo", "fedavg", "uniform", "reward", "informative", "lagging", "upgrad", "mgda"] = (
        "agreement"
    )
    n_k: Literal["rows", "sequences", "tokens", "informative"] = "rows"
    tau: float = 1.0
    clip: float = 1.0
    cap: float = 0.5
    floor: float = 0.0
    decay: float = 0.7
    scale: Literal["baseline", "deviation", "error"] = "baseline"
    smoothing: float = 0.0
    gain: Literal["reward", "heldout", "server"] = "reward"
    gain_prompts: int = 32
    gain_tasks: list[TaskConfig] = field(default_factory=list)
    robust: Literal["none", "clipped_mean", "trimmed_mean", "median"] = "none"
    max_norm: float | None = None
    trim: int | None = None


@dataclass(frozen=True)
class ServerConfig:
    """How the server applies the aggregated delta.

    Args:
        optimizer: `plain` adds it, `momentum` is Nesterov's (as in DiLoCo), `adam` is FedAdam.
        step: a factor of every step, from how the deltas lie to each other; `fgrpo rules` lists them. Null is
            `agreement` with the rule of that name and the optimizer `plain`, else `fixed`.
        lr: the server's learning rate; null means 1 for `plain`, 0.7 for `momentum`, 1e-3 for `adam`.
        momentum: momentum of `momentum`, first-moment decay of `adam`.
        beta2: second-moment decay of `adam`.
        eps: added to the root of `adam`'s second moment.
    """

    optimizer: Literal["plain", "momentum", "adam"] = "plain"
    step: Literal["fixed", "decay", "fedexp", "agreement"] | None = None
    lr: float | None = None
    momentum: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-3


@dataclass(frozen=True)
class ParticipationConfig:
    """Which clients take part in a round: a sample that depends on the seed and the round alone.

    Args:
        fraction: share of the clients, rounded to a whole number, at least one.
        clients_per_round: or how many of them.
        seed: of the sample; null is the run's.
    """

    fraction: float | None = None
    clients_per_round: int | None = None
    seed: int | None = None
