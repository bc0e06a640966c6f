"""Held-out accuracy of a rival's model: our evaluation, on our prompts, outside what is timed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fgrpo.client.evaluation import evaluate
from fgrpo.client.owners import make_clients
from fgrpo.client.policy import Policy
from fgrpo.config import Config


def held_out_accuracy(config: Config, parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the accuracy by client of the configuration's model with its trained parameters replaced."""
    policy = Policy.load(config)
    trained = dict(policy.model.named_parameters())
    for name, values in parameters.items():
        trained[name].detach().copy_(values)
    return {client.name: evaluate(policy, client, config, config.rounds).accuracy for client in make_clients(config)}
