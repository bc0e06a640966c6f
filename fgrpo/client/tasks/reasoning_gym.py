"""Procedural tasks of reasoning-gym, by name; its own verifier gives the score."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fgrpo.client.tasks.rewards import Reward
from fgrpo.errors import ConfigError
from fgrpo.nearest import did_you_mean
from fgrpo.records import Example

_SIZE = 10_000  # some tasks build all their examples at once or refuse to be larger; past it they come round again
_SEEDS = 2**31  # some tasks hand their seed to NumPy, which takes 32 bits


class ReasoningGymTask:
    """A reasoning-gym task. Example `i` depends only on the seed and `i` modulo 10,000."""

    def __init__(self, name: str, params: dict[str, Any], seed: int, reward: Reward | None = None) -> None:
        self.name = name
        self._reward = reward
        self._dataset = _create(name, params, seed % _SEEDS)
        self.example = lru_cache(maxsize=4096)(self._example)

    def _example(self, index: int) -> Example:
        entry = self._dataset[index % _SIZE]
        return Example(entry["question"], str(entry["answer"]), entry)

    def score(self, example: Example, completion: str) -> float:
        answer = completion.strip()
        if self._reward is not None:
            return self._reward(answer, example.answer)
        try:
            return self._dataset.score_answer(answer, example.entry)
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, SyntaxError):
            return 0.0  # several of its verifiers raise on a text that they cannot parse


def _create(name: str, params: dict[str, Any], seed: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ConfigError(f"task {name}: reasoning-gym is not installed: pip install 'fgrpo[tasks]'") from None
    if name not in DATASETS:
        raise ConfigError(
            f"unknown reasoning-gym task '{name}'{did_you_mean(name, DATASETS)} (it has {len(DATASETS)} tasks)"
        )
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=_SIZE, **params)
    except (TypeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ConfigError(f"task {name}: reasoning-gym refuses params {params}: {reason}") from None
