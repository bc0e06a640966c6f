"""What an objective sees of a batch, and what it must provide.

N token rows   S sequences
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import exp

Level = Literal["token", "sequence"]

# e^80 = 5.5e34 still fits float32 after a multiplication by an advantage and a weight. Past it the ratio stops
# growing and its gradient is 0; without a bound it would be inf, and 0 * inf = NaN where the clip is active.
MAX_LOG_RATIO = 80.0


def bounded_exp(x: Tensor) -> Tensor:
    """`exp(x)`, held at `e^80` above."""
    return x.clamp(max=MAX_LOG_RATIO).exp()


class DeviceForm(NamedTuple):
    """The Triton form of an objective.

    Attributes:
        name: key in `fgrpo_kernels.objectives.DEVICE_FUNCTIONS` of a device function
            `(logp, own_log_ratio, gathered, advantage, a, b, c, d) -> (l, slope, shared_slope, low, high)`.
            `own_log_ratio` is `logp - old_logp`; `gathered` what the objective gathers over the row's sequence, or,
            token by token, again the row's own log-ratio. The slopes are those of `l` in logp with `gathered` held
            fixed, and in `gathered`; the last two say whether the objective cuts the gradient off below and above.
            It is called for scalars of a row and for blocks of rows alike.
            Under the same name, `DEVICE_GATHERS` says what is gathered at sequence level.
        parameters: up to four numbers, a to d; the missing ones are 0.
    """

    name: str
    parameters: tuple[float, ...]


class DeviceGather(NamedTuple):
    """What a sequence-level objective gathers over the masked rows of a sequence.

    Attributes:
        function: device function `(own_log_ratio, advantage, a, b, c, d) -> (value, slope of the value in logp)`.
        mean: whether the values are averaged, or summed up.
        is_log_ratio: whether the result is the log of the importance ratio that metrics and `kl="k3_is"` take;
            otherwise that is each row's own.
    """

    function: Any
    mean: bool = True
    is_log_ratio: bool = True


@jit
def plain_log_ratio(
    log_ratio: tl.tensor, advantage: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor
) -> tl.tensor:
    """The sequence's ratio is the exponential of the mean log-ratio: see `Level`."""
    return log_ratio, 1.0


@dataclass(frozen=True)
class Tokens:
    """N token rows as an objective sees them. Only `logp_N` is differentiable.

    Attributes:
        logp_N: log-probability of each token under the policy being trained, in nats.
        old_logp_N: the same under the policy that sampled it.
        advantages_N: advantage of each token.
        mask_N: bool, the tokens that sums and means over a sequence take in; None when the objective works token by
            token.
        sequence_ids_N: int64 in `[0, num_sequences)`; None likewise.
        num_sequences: S.
    """

    logp_N: Tensor
    old_logp_N: Tensor
    advantages_N: Tensor
    mask_N: Tensor | None
    sequence_ids_N: Tensor | None
    num_sequences: int

    def log_ratio(self, level: Level) -> Tensor:
        """`[N]` log of the importance ratio: each token's own, or its sequence's mean over the masked tokens."""
        log_ratio_N = self.logp_N - self.old_logp_N
        return log_ratio_N if level == "token" else self.sequence_mean(log_ratio_N)

    def sequence_sum(self, x_N: Tensor) -> Tensor:
        """`[N]`: for each row, the sum of `x_N` over the masked rows of its sequence."""
        assert self.sequence_ids_N is not None, "an objective that uses sequences must set sequence_level"
        assert self.mask_N is not None, "set together with the ids"
        sums_S = x_N.new_zeros(self.num_sequences)
        sums_S = sums_S.index_add(0, self.sequence_ids_N, torch.where(self.mask_N, x_N, 0.0))
        return sums_S[self.sequence_ids_N]

    def sequence_mean(self, x_N: Tensor) -> Tensor:
        """`[N]`: for each row, the mean of `x_N` over the masked rows of its sequence (0 if it has none)."""
        return self.sequence_sum(x_N) / self.sequence_sum(torch.ones_like(x_N)).clamp(min=1.0)


@jit
def device_bounded_exp(x: tl.tensor) -> tl.tensor:
    """`(bounded_exp(x), its slope)`."""
    power = exp(tl.minimum(x, 80.0))
    return power, tl.where(x <= 80.0, power, 0.0)


class HasLevel(Protocol):
    @property
    def level(self) -> Level: ...


def check_level(objective: HasLevel) -> None:
    """Raise ValueError for a level that does not exist."""
    if objective.level not in get_args(Level):
        raise ValueError(f'{type(objective).__name__}: level must be "token" or "sequence", got {objective.level!r}')


@runtime_checkable
class Objective(Protocol):
    """The policy term `l` of the loss. Implementations are frozen dataclasses.

    It may also have `device_form() -> DeviceForm`: on a GPU its arithmetic is then part of the kernels, and if it works
    token by token, one pass makes loss and gradient. Without one it takes three passes and PyTorch between them.

    `loss` must be proportional to the advantage, so that a row with advantage 0 can be left out before its logits
    are formed.
    """

    @property
    def sequence_level(self) -> bool:
        """Whether a token's loss depends on other tokens of its sequence."""

    def loss(self, tokens: Tokens) -> Tensor:
        """`[N]` policy loss of each token, differentiable in `tokens.logp_N`."""

    def log_ratio(self, tokens: Tokens) -> Tensor:
        """`[N]` log of the importance ratio that the objective uses: for metrics and for `kl="k3_is"`."""

    def clipped(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Two bool `[N]`: tokens whose gradient the objective cuts off below, and above."""


_objectives: set[type] = set()


def is_objective(x: object) -> bool:
    """`isinstance(x, Objective)`, which takes as long as a small kernel: asked once for each class."""
    if type(x) not in _objectives and isinstance(x, Objective):
        _objectives.add(type(x))
    return type(x) in _objectives


def device_form(objective: Objective) -> DeviceForm | None:
    """The objective's Triton form, if it has one."""
    make = getattr(objective, "device_form", None)
    return None if make is None else make()
