"""Tasks: numbered prompts with a verifiable reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fgrpo.client.tasks.base import Curriculum, Task
from fgrpo.client.tasks.dataset import DatasetTask
from fgrpo.client.tasks.diagnostic import diagnosed
from fgrpo.client.tasks.reasoning_gym import ReasoningGymTask
from fgrpo.client.tasks.rewards import make_rewards
from fgrpo.client.tasks.scoring import WeightedReward
from fgrpo.client.tasks.tables import Table, load_table
from fgrpo.config import TaskConfig
from fgrpo.errors import ConfigError

__all__ = ["Curriculum", "Task", "dataset_rewards", "make_task"]


def make_task(config: TaskConfig, seed: int, read: Callable[[TaskConfig], Table] = load_table) -> Task:
    """Build the task that `config` describes.

    Args:
        seed: decides its examples (reasoning-gym) or their order (dataset).
        read: how a dataset is read.
    """
    if (config.reasoning_gym is None) == (config.dataset is None):
        raise ConfigError("a task names either reasoning_gym: <task name> or dataset: <hub id or file>, exactly one")
    if config.reasoning_gym is not None:
        if _has_test_set(config):
            raise ConfigError(
                f"task '{config.reasoning_gym}': test_dataset and test_split are for datasets; evaluation.prompts says "
                "how many of its examples are held out"
            )
        task = ReasoningGymTask(config.reasoning_gym, config.params, seed, config.reward)
        task.rewards = diagnosed(task.rewards, config.diagnostic, seed)
        return task
    assert config.dataset is not None
    if config.params:
        raise ConfigError(f"dataset '{config.dataset}': params are for reasoning-gym tasks only, got {config.params}")
    table = read(config)
    test = read(_test_set(config)) if _has_test_set(config) else None
    rewards = diagnosed(dataset_rewards(config, table), config.diagnostic, seed)
    return DatasetTask(config.dataset, table, seed, rewards, test=test)


def _has_test_set(config: TaskConfig) -> bool:
    return config.test_dataset is not None or config.test_split is not None


def _test_set(config: TaskConfig) -> TaskConfig:
    """Return where a task's test set is read from; a file's own split is `train`."""
    split = "train" if config.test_split is None else config.test_split
    return replace(config, dataset=config.test_dataset or config.dataset, split=split)


def dataset_rewards(config: TaskConfig, table: Table) -> tuple[WeightedReward, ...]:
    """Return the rewards of a task on a dataset."""
    spec = "exact_match" if config.reward is None else config.reward
    return make_rewards(spec, table.columns, has_answers=config.answer_column is not None)
