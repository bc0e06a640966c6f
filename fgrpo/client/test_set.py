"""A test set of the run's own, beside what clients hold out."""

from __future__ import annotations

from fgrpo.client.owner import Client
from fgrpo.client.tasks import Curriculum, make_task
from fgrpo.config import Config
from fgrpo.errors import ConfigError
from fgrpo.records import TEST_SET
from fgrpo.seeds import derive_seed


def run_test_set(config: Config) -> Client | None:
    """Return a client that holds out all it has, under the name `TEST_SET`; None if the run has no test set.

    Raises:
        ConfigError: a task is wrong, or names a test set of its own.
    """
    tasks = config.evaluation.tasks
    if not tasks:
        return None
    seed = derive_seed(config.seed, TEST_SET)
    curricula = []
    for number, task in enumerate(tasks):
        if task.test_dataset is not None or task.test_split is not None:
            raise ConfigError("evaluation.tasks: they are the test set; name it by dataset and split")
        try:
            made = make_task(task, derive_seed(seed, number))
        except ConfigError as error:
            raise ConfigError(f"evaluation.tasks: {error}") from error.__cause__
        # Every different prompt of a dataset, in its own order of the seed.
        curricula.append(Curriculum(made, config.evaluation.prompts if made.rows is None else len(made.rows)))
    return Client(TEST_SET, tuple(curricula), (1.0,) * len(tasks), 1.0, seed, config.rewards.on_error)
