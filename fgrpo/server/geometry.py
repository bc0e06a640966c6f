"""How a round's deltas lie to each other and to their clients' last ones, measured on the compressed codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from fgrpo_kernels import codec
from fgrpo_kernels.codec import Encoded


class Geometry:
    """The Gram matrix of a round's deltas, and each delta's agreement with the same client's last one.

    Everything is measured when it is first asked for, so a rule that looks at nothing costs nothing.

    Args:
        deltas: K payloads of equal size, by client.
        last: payloads that the same clients sent when they last took part, of those that have.
    """

    def __init__(self, deltas: Mapping[str, Encoded], last: Mapping[str, Encoded]) -> None:
        self._deltas, self._last = deltas, last

    @cached_property
    def gram(self) -> Tensor:
        """float64 [K, K]: inner products of the decoded deltas."""
        return codec.gram(list(self._deltas.values()))

    @cached_property
    def agreement(self) -> Mapping[str, float]:
        """By client, the cosine of its delta with its own last one; absent for a client without a past.

        Two deltas of a client that learns share a direction, two of mere noise do not: the cosine is about the part of
        the delta's squared length that is signal. It turns negative where a step went too far. 0 for a delta of zeros.
        """
        return {
            client: _cosine(delta, self._last[client])
            for client, delta in self._deltas.items()
            if client in self._last and self._last[client].size == delta.size
        }

    def spread(self, weights: Mapping[str, float]) -> float:
        """Return `sum w_k |d_k|^2 / |sum w_k d_k|^2`; 1 if the mean is zero.

        It is 1 for equal deltas, and `1 / sum w_k^2` for orthogonal ones of one length.
        """
        weights_K = torch.tensor([weights[client] for client in self._deltas], dtype=torch.float64)
        mean = (weights_K @ self.gram @ weights_K).item()
        return (weights_K @ self.gram.diagonal()).item() / mean if mean > 0 else 1.0


def _cosine(delta: Encoded, other: Encoded) -> float:
    product, square, other_square = (
        codec.gram([a], [b]).item() for a, b in ((delta, other), (delta, delta), (other, other))
    )
    return product / math.sqrt(square * other_square) if square > 0 and other_square > 0 else 0.0
