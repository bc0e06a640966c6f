"""Prompts that are the run's own, beside what clients hold out: its test set, and the public ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fgrpo.client.owner import Client
from fgrpo.client.tasks import Curriculum, make_task
from fgrpo.config import Config, TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.records import PUBLIC, TEST_SET, ClientData
from fgrpo.seeds import derive_seed


def of_the_run(config: Config) -> dict[str, Client]:
    """Return clients that hold out all they have, by the names in `OF_THE_RUN`, those that the run has.

    Raises:
        ConfigError: a task is wrong, or names a test set of its own.
    """
    evaluation, aggregation = config.evaluation, config.aggregation
    found = {}
    if evaluation.tasks:
        found[TEST_SET] = _holding_out(TEST_SET, "evaluation.tasks", evaluation.tasks, evaluation.prompts, True, config)
    if aggregation.gain_tasks:
        share = -(-aggregation.gain_prompts // len(aggregation.gain_tasks))
        found[PUBLIC] = _holding_out(PUBLIC, "aggregation.gain_tasks", aggregation.gain_tasks, share, False, config)
    return found


def described(client: Client) -> ClientData:
    """Return what the run's own prompts are: nobody learns from them."""
    return replace(client.data(), rows=0, labels={}, notes=())


def _holding_out(name: str, key: str, tasks: Sequence[TaskConfig], share: int, whole: bool, config: Config) -> Client:
    """Return a client that holds out so many prompts of each task, in the seed's order; of datasets the `whole`."""
    seed = derive_seed(config.seed, name)
    curricula = []
    for number, task in enumerate(tasks):
        if task.test_dataset is not None or task.test_split is not None:
            raise ConfigError(f"{key}: they are the {name} already; name a file or a split by dataset and split")
        try:
            made = make_task(task, derive_seed(seed, number))
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error.__cause__
        curricula.append(Curriculum(made, len(made.rows) if whole and made.rows is not None else share))
    return Client(name, tuple(curricula), (1.0,) * len(tasks), 1.0, seed, config.rewards.on_error)
