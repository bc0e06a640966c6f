"""Means that a hostile or broken client cannot carry away, straight from the codes of `fgrpo_kernels.codec`.

    mean = clipped_mean(encodeds, weights, max_norm=1.0).mean   # at most weight * max_norm a client
    mean = trimmed_mean(encodeds, trim=1)                       # per coordinate, without the smallest and the largest
    mean = median(encodeds)                                     # per coordinate

Payloads may differ in codec and block and are never decoded as a whole: memory is O(P) whatever the number of clients.
Results are the same bits for every number of threads and every machine; `trimmed_mean` and `median` also for every
order of the payloads. Contract: `csrc/robust.h`.

Legend: P parameters (elements of a delta), K clients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fgrpo_kernels import _C
from fgrpo_kernels.codec import Encoded, aggregate
from fgrpo_kernels.codec.buffers import buffer_of, output_tensor, require_int, thread_count
from fgrpo_kernels.codec.payloads import fields_of_all

__all__ = ["MOST_SORTED", "ClippedMean", "clipped_mean", "median", "norms", "trimmed_mean"]

MOST_SORTED = 64  # clients that `trimmed_mean` and `median` take; csrc/robust.h


@dataclass(frozen=True)
class ClippedMean:
    """What `clipped_mean` returns.

    mean: float32 [P]
    norms: each delta's L2 norm before clipping
    factors: what each delta was multiplied by, `min(1, max_norm / norm)`; below 1 where it was clipped
    """

    mean: Tensor
    norms: tuple[float, ...]
    factors: tuple[float, ...]


def norms(encodeds: Sequence[Encoded], *, num_threads: int | None = None) -> tuple[float, ...]:
    """The L2 norm of each payload's delta, in float64 from one pass over the codes.

    Raises ValueError for no payloads, unequal sizes, or a value that is NaN or infinite, naming payload and index.

    Example:
        >>> norms([encode(torch.tensor([3.0, 4.0]), codec="bf16")])
        (5.0,)
    """
    held = list(encodeds)
    return tuple(_C.norms(fields_of_all("norms: payload", held), thread_count("norms", num_threads)))


def clipped_mean(
    encodeds: Sequence[Encoded],
    weights: Sequence[float] | Tensor,
    max_norm: float,
    out: Tensor | None = None,
    *,
    num_threads: int | None = None,
) -> ClippedMean:
    """`sum_k weights[k] * min(1, max_norm / norm_k) * decode(encodeds[k])`: `aggregate` after norm clipping.

    encodeds: K payloads of equal size; codecs and blocks may differ
    weights: K finite numbers, used as they are, so divide them by their sum for a mean
    max_norm: the largest L2 norm that a delta keeps; more than 0, and infinity clips nothing
    out: float32 [P] to write to; a new tensor where None. Unchanged if an error is raised.

    Raises ValueError as `norms` and `aggregate` do, and for a `max_norm` that is not above 0.

    Example:
        >>> deltas = [encode(torch.tensor([x, 0.0]), codec="bf16") for x in (1.0, 100.0)]
        >>> clipped_mean(deltas, [0.5, 0.5], max_norm=1.0)
        ClippedMean(mean=tensor([1., 0.]), norms=(1.0, 100.0), factors=(1.0, 0.01))
    """
    if not max_norm > 0:
        raise ValueError(f"clipped_mean: max_norm must be above 0, got {max_norm}")
    lengths = norms(encodeds, num_threads=num_threads)
    factors = tuple(1.0 if length <= max_norm else max_norm / length for length in lengths)
    weight_list = [float(weight) for weight in (weights.tolist() if isinstance(weights, Tensor) else weights)]
    if len(weight_list) != len(factors):
        raise ValueError(f"clipped_mean: {len(factors)} payloads but {len(weight_list)} weights")
    clipped = [weight * factor for weight, factor in zip(weight_list, factors, strict=True)]
    return ClippedMean(aggregate(encodeds, clipped, out, num_threads=num_threads), lengths, factors)


def trimmed_mean(
    encodeds: Sequence[Encoded], trim: int, out: Tensor | None = None, *, num_threads: int | None = None
) -> Tensor:
    """Per coordinate, the mean of the K values without the `trim` smallest and the `trim` largest.

    Up to `trim` clients may send anything: the result stays within the range of the others' values. Every client
    counts the same; there are no weights.

    encodeds: 1 to 64 payloads of equal size; codecs and blocks may differ
    trim: clients dropped at each end, from 0 (the plain mean) to (K - 1) // 2 (the median)
    out: float32 [P] to write to, returned; a new tensor where None

    The kept values are added in ascending order in float32, so the order of the payloads changes no bit.
    Raises ValueError for no payloads or too many, unequal sizes, a `trim` that leaves nothing, or a value that is NaN
    or infinite, naming payload and index; after the last, `out` may hold anything.

    Example:
        >>> trimmed_mean([encode(torch.tensor([x]), codec="bf16") for x in (1.0, 2.0, 4.0, -100.0)], trim=1)
        tensor([1.5000])
    """
    if require_int("trimmed_mean: trim", trim) < 0:
        raise ValueError(f"trimmed_mean: trim must not be negative, got {trim}")
    held = list(encodeds)
    payloads = fields_of_all("trimmed_mean: payload", held)
    out = output_tensor("trimmed_mean", out, held[0].size if held else 0)
    _C.trimmed_mean(payloads, trim, buffer_of(out), thread_count("trimmed_mean", num_threads))
    return out


def median(encodeds: Sequence[Encoded], out: Tensor | None = None, *, num_threads: int | None = None) -> Tensor:
    """Per coordinate, the median of the K values; of an even number, the mean of the two in the middle.

    This is `trimmed_mean` with the largest trim, and raises what that raises.

    Example:
        >>> median([encode(torch.tensor([x]), codec="bf16") for x in (1.0, 2.0, -100.0)])
        tensor([1.])
    """
    return trimmed_mean(encodeds, max(0, math.ceil(len(encodeds) / 2) - 1), out, num_threads=num_threads)
