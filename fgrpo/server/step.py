"""The server's step: the aggregated delta is a direction, and an optimiser follows it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fgrpo.config import ServerConfig


def server_step(
    params_P: Tensor, delta_P: Tensor, state: Mapping[str, Tensor], config: ServerConfig, factor: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the new global parameters and the optimiser's new state; both arguments stay as they were.

    - `plain`: `params + lr * delta`.
    - `momentum`: Nesterov's, as in DiLoCo (arXiv 2311.08105): `v <- m v + delta`, `params + lr * (delta + m v)`.
    - `adam`: FedAdam (arXiv 2003.00295, without bias correction): `m <- b1 m + (1-b1) delta`,
      `v <- b2 v + (1-b2) delta^2`, `params + lr * m / (sqrt(v) + eps)`.

    `factor` multiplies `lr`.
    """
    step, new_state = _OPTIMIZERS[config.optimizer](delta_P, state, config)
    lr = _DEFAULT_LR[config.optimizer] if config.lr is None else config.lr
    return torch.add(params_P, step, alpha=factor * lr), new_state


def _plain(delta_P: Tensor, state: Mapping[str, Tensor], config: ServerConfig) -> tuple[Tensor, dict[str, Tensor]]:
    return delta_P, {}


def _momentum(delta_P: Tensor, state: Mapping[str, Tensor], config: ServerConfig) -> tuple[Tensor, dict[str, Tensor]]:
    velocity_P = delta_P + config.momentum * state["velocity"] if state else delta_P.clone()
    return delta_P + config.momentum * velocity_P, {"velocity": velocity_P}


def _adam(delta_P: Tensor, state: Mapping[str, Tensor], config: ServerConfig) -> tuple[Tensor, dict[str, Tensor]]:
    zeros_P = torch.zeros_like(delta_P)
    first_P = torch.lerp(state.get("first", zeros_P), delta_P, 1 - config.momentum)
    second_P = torch.lerp(state.get("second", zeros_P), delta_P.square(), 1 - config.beta2)
    return first_P / (second_P.sqrt() + config.eps), {"first": first_P, "second": second_P}


# A delta is a step in itself; FedAdam's step is of the order of its learning rate whatever the delta.
_DEFAULT_LR = {"plain": 1.0, "momentum": 0.7, "adam": 1e-3}
_OPTIMIZERS = {"plain": _plain, "momentum": _momentum, "adam": _adam}
