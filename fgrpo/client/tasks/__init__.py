"""Tasks: numbered prompts with a verifiable reward."""

from __future__ import annotations

from fgrpo.client.tasks.base import Curriculum, Task
from fgrpo.client.tasks.dataset import DatasetTask
from fgrpo.client.tasks.reasoning_gym import ReasoningGymTask
from fgrpo.client.tasks.rewards import reward_by_name
from fgrpo.client.tasks.tables import load_table
from fgrpo.config import TaskConfig
from fgrpo.errors import ConfigError

__all__ = ["Curriculum", "Task", "make_task"]


def make_task(config: TaskConfig, seed: int) -> Task:
    """Build the task that `config` describes; `seed` decides its examples (reasoning-gym) or their order (dataset)."""
    if (config.reasoning_gym is None) == (config.dataset is None):
        raise ConfigError("a task names either reasoning_gym: <task name> or dataset: <hub id or file>, exactly one")
    if config.reasoning_gym is not None:
        reward = reward_by_name(config.reward) if config.reward else None
        return ReasoningGymTask(config.reasoning_gym, config.params, seed, reward)
    assert config.dataset is not None
    if config.params:
        raise ConfigError(f"dataset '{config.dataset}': params are for reasoning-gym tasks only, got {config.params}")
    reward = reward_by_name(config.reward or "exact_match")
    return DatasetTask(config.dataset, load_table(config), seed, reward)
