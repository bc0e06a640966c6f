"""Procedural tasks of reasoning-gym, by name; its own verifier gives the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from fgrpo.client.tasks.base import Row
from fgrpo.client.tasks.rewards import RewardSpec, make_rewards
from fgrpo.client.tasks.scoring import Outcome, WeightedReward
from fgrpo.errors import ConfigError, how_to_install
from fgrpo.nearest import did_you_mean
from fgrpo.records import Completion, Example

_SIZE = 10_000  # some tasks build all their examples at once or refuse to be larger; past it they come round again
_SEEDS = 2**31  # some tasks hand their seed to NumPy, which takes 32 bits


class ReasoningGymTask:
    """A reasoning-gym task. Example `i` depends only on the seed and `i` modulo 10,000."""

    rows: Sequence[Row] | None = None
    files: Mapping[str, str] = MappingProxyType({})
    test: Sequence[Example] | None = None

    def __init__(self, name: str, params: dict[str, Any], seed: int, reward: RewardSpec | None = None) -> None:
        self.name = name
        self._dataset = _create(name, params, seed % _SEEDS)
        self.example = lru_cache(maxsize=4096)(self._example)
        self.rewards: Sequence[WeightedReward] = (
            (WeightedReward(_Verifier(self._dataset)),)
            if reward is None
            else make_rewards(reward, list(self.example(0).entry))
        )

    def _example(self, index: int) -> Example:
        entry = self._dataset[index % _SIZE]
        return Example(entry["question"], str(entry["answer"]), entry)


class _Verifier:
    """The task's own scoring of answers."""

    name = "verifier"

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self, examples: Sequence[Example], completions: Sequence[Completion]) -> list[Outcome]:
        return [self._score(*each) for each in zip(examples, completions, strict=True)]

    def _score(self, example: Example, completion: Completion) -> Outcome:
        try:
            return float(self._dataset.score_answer(completion.text.strip(), example.entry))
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, SyntaxError):
            return 0.0  # several of its verifiers raise on a text that they cannot parse


def _create(name: str, params: dict[str, Any], seed: int) -> Any:
    try:
        from fgrpo.client.tasks.gym import DATASETS, reasoning_gym
    except ImportError:
        raise ConfigError(f"task {name}: reasoning-gym is not installed: {how_to_install('reasoning-gym')}") from None
    if name not in DATASETS:
        raise ConfigError(
            f"unknown reasoning-gym task '{name}'{did_you_mean(name, DATASETS)} (it has {len(DATASETS)} tasks)"
        )
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=_SIZE, **params)
    except (TypeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ConfigError(f"task {name}: reasoning-gym refuses params {params}: {reason}") from None
