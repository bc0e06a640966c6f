"""FedProx (arXiv 1812.06127): a spring from a client's weights to the global ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def anchors(parameters: Sequence[Tensor], start: Sequence[Tensor], mu: float) -> Sequence[Tensor]:
    """Return the global values where the parameters are, if there is to be a spring: every step reads them."""
    if mu == 0:
        return start
    return [values.to(parameter.device) for parameter, values in zip(parameters, start, strict=True)]


@torch.no_grad()
def add_proximal(parameters: Sequence[Tensor], start: Sequence[Tensor], mu: float) -> None:
    """Add the gradient of `mu / 2 * |w - start|^2` to the parameters' gradients, in place.

    Args:
        start: the global values, of any shape with as many elements.
    """
    if mu == 0:
        return
    for parameter, values in zip(parameters, start, strict=True):
        pull = mu * (parameter - values.view_as(parameter))
        parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)
