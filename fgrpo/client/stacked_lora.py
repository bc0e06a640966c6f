"""The LoRA adapters of several clients over one frozen model, so that rows of all clients pass through it at once.

K clients   R rows of a batch   L tokens of a row   r rank   I, O inputs and outputs of a layer
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from fgrpo.client.model import base_model
from fgrpo.errors import ConfigError
from fgrpo.wire.parameters import trainable

_ADAPTER = "default"  # peft's name of the only one


class _Rows:
    """Whose adapter a row gets: one client's for all rows, or that of a client per row, int64 [R]."""

    clients: int | Tensor = 0


class StackedLoraLayer(nn.Module):
    """Stands in for a linear layer with peft's LoRA adapter; each row of its input gets its own client's adapter.

    Args:
        layer: the one that it stands in for; its frozen layer, its dropout and its scale are used.
    """

    def __init__(self, layer: Any, clients: int, rows: _Rows) -> None:
        super().__init__()
        self.layer, self._rows = layer, rows
        self.A_KrI, self.B_KOr = (_copies(side[_ADAPTER].weight, clients) for side in (layer.lora_A, layer.lora_B))

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some models ask a layer for its number format."""
        return self.layer.weight

    def forward(self, x_RLI: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base_RLO = self.layer.get_base_layer()(x_RLI, *args, **kwargs)
        if self.layer.disable_adapters:
            return base_RLO
        dropped_RLI = self.layer.lora_dropout[_ADAPTER](x_RLI.to(self.A_KrI.dtype))
        update_RLO = self._update(dropped_RLI) * self.layer.scaling[_ADAPTER]
        return (base_RLO + update_RLO).to(base_RLO.dtype)

    def _update(self, x_RLI: Tensor) -> Tensor:
        clients = self._rows.clients
        if isinstance(clients, int):
            return linear(linear(x_RLI, self.A_KrI[clients]), self.B_KOr[clients])
        if x_RLI.ndim != 3 or len(x_RLI) != len(clients):
            raise ConfigError(
                f"engine.stacked: an adapted layer takes {list(x_RLI.shape)}, expected [{len(clients)} rows, tokens, "
                "features]; does the model send tokens to experts? Leave such layers out of lora.target_modules"
            )
        return x_RLI.bmm(self.A_KrI[clients].mT).bmm(self.B_KOr[clients].mT)


def _copies(weight: Tensor, clients: int) -> nn.Parameter:
    """Return one for each client; of a frozen weight (`lora.train: b`) all are the same memory."""
    copies = weight.detach().expand(clients, *weight.shape)
    return nn.Parameter(copies.clone() if weight.requires_grad else copies, requires_grad=weight.requires_grad)


class Stack:
    """K clients' values of everything that is trained, in place in a model for as long as `stacked` lasts.

    Attributes:
        parameters: for each client what an optimiser takes; the tensors share memory with the stack.
        start: what every client was loaded with, views of a flat vector on the model's device.
    """

    start: Sequence[Tensor]

    def __init__(self, clients: int, rows: _Rows, stacked: list[nn.Parameter]) -> None:
        self._rows, self._stacked = rows, stacked
        self.parameters = [[nn.Parameter(p.detach()[k]) for p in stacked] for k in range(clients)]

    @contextmanager
    def rows(self, clients: int | Tensor) -> Iterator[None]:
        """Within, the model's rows are one client's, or those of the clients in an int64 [R]."""
        self._rows.clients = clients
        try:
            yield
        finally:
            self._rows.clients = 0

    @torch.no_grad()
    def load(self, params_P: Tensor) -> None:
        """Have every client start from the same parameters, float32 [P]."""
        self.start = params_P.to(self._stacked[0].device).split([p[0].numel() for p in self._stacked])
        for p, values in zip(self._stacked, self.start, strict=True):
            p.copy_(values.view_as(p[0]).expand_as(p))

    def flatten(self, client: int) -> Tensor:
        """Return a client's parameters as a new float32 vector [P] on the model's device."""
        return torch.cat([p.detach().float().reshape(-1) for p in self.parameters[client]])

    def take_gradients(self, clients: list[int]) -> None:
        """Hand these clients their own gradients; the others have none, so that no optimiser moves them."""
        for k, own in enumerate(self.parameters):
            for parameter, p in zip(own, self._stacked, strict=True):
                parameter.grad = p.grad[k] if k in clients and p.grad is not None else None
        for p in self._stacked:
            p.grad = None


@contextmanager
def stacked(model: nn.Module, clients: int) -> Iterator[Stack]:
    """Put stand-ins with K adapters in the place of a model's adapted layers; afterwards it is as it was before.

    Raises:
        ConfigError: something else is trained too.
    """
    _check_only_linear(model)
    rows = _Rows()
    stand_ins = {name: StackedLoraLayer(layer, clients, rows) for name, layer in _adapted(model)}
    trained = {}  # by the name that peft gives it
    for name, stand_in in stand_ins.items():
        trained[f"{name}.lora_A.{_ADAPTER}.weight"] = stand_in.A_KrI
        trained[f"{name}.lora_B.{_ADAPTER}.weight"] = stand_in.B_KOr
    stack = Stack(clients, rows, [trained[name] for name, _ in trainable(model)])
    for name, stand_in in stand_ins.items():
        model.set_submodule(name, stand_in)
    try:
        yield stack
    finally:
        for name, stand_in in stand_ins.items():
            model.set_submodule(name, stand_in.layer)


def _adapted(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _check_only_linear(model: nn.Module) -> None:
    """Raise ConfigError unless all that is trained are adapters on linear layers within the decoder."""
    head = base_model(model).get_output_embeddings()
    stackable = set()
    for name, layer in model.named_modules():
        if (
            isinstance(layer, LoraLayer)
            and isinstance(layer.get_base_layer(), (nn.Linear, Conv1D))
            and layer is not head
        ):
            stackable |= {f"{name}.lora_{side}.{_ADAPTER}.weight" for side in "AB"}
    for name, _ in trainable(model):
        if name not in stackable:
            raise ConfigError(
                f"engine.stacked: {name} cannot be stacked, as only LoRA adapters on linear layers other than the head "
                "can; leave that layer out of lora.target_modules"
            )
