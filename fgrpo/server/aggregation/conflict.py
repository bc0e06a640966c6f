"""Weights with which no client is made worse, from the Gram matrix alone: UPGrad and MGDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgrpo.records import ClientHistory, Report
from fgrpo.server.aggregation.base import normalised
from fgrpo.server.geometry import Geometry


@dataclass(frozen=True)
class UPGrad:
    """The mean of all deltas, each projected so that it opposes no other (arXiv 2406.16232).

    Deltas of unequal length are taken as they are. Where nothing conflicts the weights are equal.
    """

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]:
        return normalised(_projected(_scaled(geometry.gram)).sum(0).tolist())


@dataclass(frozen=True)
class MGDA:
    """The shortest vector in the convex hull of the deltas (arXiv 1810.04650): it opposes none of them.

    A delta of zeros, which would be the shortest of all, opposes nothing and counts nothing.
    """

    def __call__(
        self, reports: Sequence[Report], history: Mapping[str, ClientHistory], geometry: Geometry
    ) -> list[float]:
        gram_KK = _scaled(geometry.gram)
        used_K = gram_KK.diagonal() > 0
        weights_K = used_K.double() / used_K.sum().clamp(min=1)
        for _ in range(_STEPS):  # pairwise Frank-Wolfe: exact steps from the worst corner in use to the best
            products_K = gram_KK @ weights_K
            best = int(products_K.where(used_K, torch.inf).argmin())
            worst = int(products_K.where(weights_K > 0, -torch.inf).argmax())
            gap = (products_K[worst] - products_K[best]).item()
            length = (gram_KK[best, best] - 2 * gram_KK[best, worst] + gram_KK[worst, worst]).item()
            if gap <= _ENOUGH or length <= 0:
                break
            step = min(gap / length, weights_K[worst].item())
            weights_K[worst] -= step
            weights_K[best] += step
        return normalised(weights_K.tolist())


_STEPS, _ENOUGH = 2000, 1e-10


def _scaled(gram_KK: Tensor) -> Tensor:
    """Divide by the mean squared length: weights do not depend on the deltas' common unit."""
    mean = gram_KK.diagonal().mean()
    return gram_KK / mean if mean > 0 else gram_KK


def _projected(gram_KK: Tensor) -> Tensor:
    """Return float64 [K, K]: in row k the weights, at least 0, of delta k projected onto what opposes no delta.

    They minimise `v' G v` over `v >= e_k`: coordinate descent on all rows at once, whose every step is exact.
    """
    least_KK = torch.eye(len(gram_KK), dtype=torch.float64)
    weights_KK = least_KK.clone()
    used = [k for k, square in enumerate(gram_KK.diagonal().tolist()) if square > 0]
    for _ in range(_STEPS):
        before_KK = weights_KK.clone()
        for k in used:
            rest_K = weights_KK @ gram_KK[:, k] - weights_KK[:, k] * gram_KK[k, k]
            weights_KK[:, k] = torch.maximum(least_KK[:, k], -rest_K / gram_KK[k, k])
        if (weights_KK - before_KK).abs().max() < _ENOUGH:
            break
    return weights_KK
