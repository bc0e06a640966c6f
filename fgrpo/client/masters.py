"""The weights that the optimiser moves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgrpo.wire.parameters import trainable


class Masters:
    """Float32 copies of those trained parameters that the model holds in a narrower format, the others themselves.

    A step of the size of a usual learning rate is lost between two neighbouring bfloat16 numbers. The copies cost 4
    bytes a parameter for the length of a client's round, and make the optimiser's state float32: 12 bytes more in all
    than AdamW on bfloat16 would take.

    Attributes:
        parameters: what an optimiser takes.
        start: the global values of each, views of the flat vector.
    """

    def __init__(self, model: nn.Module, params_P: Tensor) -> None:
        self._trained = [parameter for _, parameter in trainable(model)]
        self.start = params_P.split([p.numel() for p in self._trained])
        self.parameters = [
            p if p.dtype == torch.float32 else v.view_as(p).to(p.device, torch.float32, copy=True).requires_grad_()
            for p, v in zip(self._trained, self.start, strict=True)
        ]
        self._copies = [(m, p) for m, p in zip(self.parameters, self._trained, strict=True) if m is not p]

    def take_gradients(self) -> None:
        """Move the model's gradients to the copies."""
        for master, parameter in self._copies:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the copies into the model."""
        for master, parameter in self._copies:
            parameter.copy_(master)

    def flatten(self) -> Tensor:
        """Return the weights as a new float32 vector [P] on the model's device."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])
