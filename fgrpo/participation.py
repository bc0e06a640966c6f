"""Who is asked: samples of clients that follow from a seed alone, so that a resumed run asks the same ones."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fgrpo.config import Config, ParticipationConfig
from fgrpo.errors import ConfigError
from fgrpo.seeds import derive_seed


def participants(clients: Sequence[str], config: Config, round_number: int) -> list[str]:
    """Return the clients that take part in a round, in their own order."""
    if config.participation is None:
        return list(clients)
    size = round_size(len(clients), config.participation)
    seed = config.seed if config.participation.seed is None else config.participation.seed
    return _sample(clients, size, derive_seed(seed, "participation", round_number))


def evaluated(clients: Sequence[str], config: Config) -> list[str]:
    """Return the clients that hold prompts out for evaluation, the same ones for the whole run."""
    size = len(clients) if config.evaluation.clients is None else min(config.evaluation.clients, len(clients))
    return _sample(clients, size, derive_seed(config.seed, "evaluation"))


def clients_per_round(config: Config) -> int | None:
    """Return how many clients take part in a round; None if only the data can tell.

    Raises:
        ConfigError: `participation` says it twice or not at all, or asks for more clients than there are.
    """
    clients: int | None = len(config.clients) or None
    if config.partition is not None:  # `column` makes one client per value
        clients = None if config.partition.scheme == "column" else config.partition.clients
    if config.participation is None:
        return clients
    if (config.participation.fraction is None) == (config.participation.clients_per_round is None):
        raise ConfigError("participation: set either fraction or clients_per_round, exactly one of them")
    if clients is None:
        return config.participation.clients_per_round
    return round_size(clients, config.participation)


def round_size(clients: int, config: ParticipationConfig | None) -> int:
    """Return how many of so many clients take part in a round.

    Raises:
        ConfigError: more are asked for.
    """
    if config is None:
        return clients
    if config.clients_per_round is None:
        assert config.fraction is not None  # checked when the configuration was read
        return max(1, round(config.fraction * clients))
    if config.clients_per_round > clients:
        raise ConfigError(f"participation.clients_per_round: got {config.clients_per_round} of {clients} clients")
    return config.clients_per_round


def _sample(clients: Sequence[str], size: int, seed: int) -> list[str]:
    chosen = random.Random(seed).sample(range(len(clients)), size)
    return [clients[at] for at in sorted(chosen)]
