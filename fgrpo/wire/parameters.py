"""The trainable parameters as one flat vector, and the manifest that says what is where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Manifest:
    """Names and shapes of the trainable parameters, in the order in which they lie in the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(model: nn.Module) -> Manifest:
        trained = list(trainable(model))
        return Manifest(tuple(n for n, _ in trained), tuple(tuple(p.shape) for _, p in trained))

    @cached_property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    @cached_property
    def hash(self) -> str:
        """Hex digest by which two parties know that they speak of the same parameters."""
        return blake2b(json.dumps([self.names, self.shapes]).encode(), digest_size=16).hexdigest()


def flatten(model: nn.Module) -> Tensor:
    """Return the trainable parameters as a new float32 CPU vector [P]."""
    return torch.cat([p.detach().float().reshape(-1) for _, p in trainable(model)]).cpu()


@torch.no_grad()
def load_flat(model: nn.Module, params_P: Tensor) -> None:
    """Write a flat vector [P] back into the model's trainable parameters, in each one's own dtype and device."""
    trained = [parameter for _, parameter in trainable(model)]
    for parameter, values in zip(trained, params_P.split([p.numel() for p in trained]), strict=True):
        parameter.copy_(values.view_as(parameter))


def fingerprint(params_P: Tensor) -> str:
    """Hex digest of a flat float32 vector's bytes."""
    return blake2b(params_P.numpy().data, digest_size=16).hexdigest()


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The trained parameters with their names, in the order in which they lie in the flat vector."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
