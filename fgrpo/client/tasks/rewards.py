"""Rewards by name, for tasks that have a reference answer but no verifier of their own. See `docs/rewards.md`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec

from fgrpo.client.tasks.calling import PerCompletion, adapted
from fgrpo.client.tasks.numbers import last_number
from fgrpo.client.tasks.scoring import RewardFunction, WeightedReward
from fgrpo.errors import ConfigError, how_to_install
from fgrpo.importing import check_name, imported


def exact_match(completion: str, answer: str) -> float:
    """1.0 if completion and answer are the same text but for surrounding white space."""
    return float(completion.strip() == answer.strip())


def number_match(completion: str, answer: str) -> float:
    """1.0 if the last number in the completion equals the last number in the answer (as in GSM8K's `#### 42`).

    Numbers are compared exactly; what counts as one is said in `docs/rewards.md`.
    """
    found, expected = last_number(completion), last_number(answer)
    return float(found is not None and found == expected)


def math_verify(completion: str, answer: str) -> float:
    """1.0 if math-verify finds the two mathematically equal (LaTeX and plain expressions)."""
    from math_verify import parse, verify

    # Their time limits use signals, which only the main thread may set.
    return float(
        verify(parse(answer, parsing_timeout=None), parse(completion, parsing_timeout=None), timeout_seconds=None)
    )


NAMED: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "number_match": number_match,
    "math_verify": math_verify,
}

RewardSpec = str | Sequence[str] | Mapping[str, float]


def make_rewards(spec: RewardSpec, columns: Sequence[str], has_answers: bool = True) -> tuple[WeightedReward, ...]:
    """Return the rewards that a configuration names.

    Args:
        spec: one name, several, or a weight per name. A name is one of `NAMED`, or an import path
            `package.module:function`.
        columns: names of the data's columns, which a function of TRL's kind may ask for.
        has_answers: whether there is an answer column.
    """
    names = [spec] if isinstance(spec, str) else list(spec)
    if not names:
        raise ConfigError("reward: the list is empty, expected at least one reward")
    weights = spec if isinstance(spec, Mapping) else dict.fromkeys(names, 1.0)
    rewards = []
    for name in names:
        if name in NAMED and not has_answers:
            raise ConfigError(f"reward {name} compares with an answer, but answer_column is null")
        rewards.append(WeightedReward(_by_name(name, columns), float(weights[name])))
    return tuple(rewards)


def _by_name(name: str, columns: Sequence[str]) -> RewardFunction:
    if name == "math_verify" and find_spec("math_verify") is None:
        raise ConfigError(f"reward math_verify needs the package math-verify: {how_to_install('math-verify')}")
    if name in NAMED:
        return PerCompletion(name, NAMED[name], takes_answer=True)
    check_name(name)
    return adapted(name, imported(name), columns)
