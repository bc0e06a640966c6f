"""What a process needs to play clients' parts: one copy of the model, and the clients, built when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from fgrpo.client.evaluation import evaluate
from fgrpo.client.guard import guarded
from fgrpo.client.model import is_adapted
from fgrpo.client.owners import Owners
from fgrpo.client.policy import Policy
from fgrpo.client.round import client_round
from fgrpo.client.trial import try_out
from fgrpo.config import Config
from fgrpo.engines.base import Trained
from fgrpo.errors import RunError
from fgrpo.records import PUBLIC, Evaluation, Failure, Trial
from fgrpo.residuals import Residuals
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import load_flat


@dataclass(frozen=True)
class Workplace:
    """Plays the clients of a configuration, one at a time, on the same model."""

    config: Config
    owners: Owners
    policy: Policy

    @staticmethod
    def open(config: Config) -> Workplace:
        """Build it; whatever is wrong with the configuration shows here."""
        return Workplace(config, Owners(config), Policy.load(config))

    def train(
        self, client: str, params_P: Tensor, residuals: Residuals, number: int, announce: Callable[[str], None]
    ) -> Trained | Failure:
        """Return a client's reply to round `number`, and its new residual where the codec keeps one."""

        def play() -> Trained:
            member = self.owners[client]
            residual_P = self.residual(client, params_P, residuals)
            stopwatch = Stopwatch(announce)
            reply = client_round(member, self.policy, params_P, residual_P, number, self.config, stopwatch)
            return reply, None if residual_P is None else residuals.keep(client, residual_P, number)

        return guarded(client, play)

    def residual(self, client: str, params_P: Tensor, residuals: Residuals) -> Tensor | None:
        """Return a copy of a client's residual for a round to change; None where the codec keeps none."""
        if not self.config.codec.error_feedback:
            return None
        return residuals[client].clone() if client in residuals else torch.zeros_like(params_P)

    def evaluate(self, client: str, params_P: Tensor, round_number: int) -> Evaluation | Failure:
        """Return the accuracy of the global model on a client's held-out prompts."""

        def play() -> Evaluation:
            load_flat(self.policy.model, params_P)
            return evaluate(self.policy, self.owners[client], self.config, round_number)

        return guarded(client, play)

    def try_out(self, params_P: Tensor, client: str, payload: bytes | None) -> Trial | Failure:
        """See `fgrpo.client.trial`."""
        return try_out(self.policy, self.owners[PUBLIC], params_P, client, payload, self.config)

    def trials(self, params_P: Tensor, payloads: Mapping[str, bytes | None]) -> Iterator[Trial | Failure]:
        """Try payloads out one after another, each decoded when its turn comes."""
        return (self.try_out(params_P, client, payload) for client, payload in payloads.items())

    def save(self, params_P: Tensor, folder: Path) -> None:
        """See `save_model`."""
        save_model(self.policy, params_P, folder)


def save_model(policy: Policy, params_P: Tensor, folder: Path) -> None:
    """Write the model with these parameters (or its adapter) and tokenizer.

    Raises:
        RunError: they cannot be written.
    """
    model = policy.model
    load_flat(model, params_P)
    try:
        # peft would look for the base model on the hub to see whether its vocabulary was changed; it was not.
        options = {"save_embedding_layers": False} if is_adapted(model) else {}
        model.save_pretrained(folder, **options)  # type: ignore[operator]
        policy.tokenizer.save_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{folder}: the model cannot be saved: {reason}; the run's rounds are whole") from error
