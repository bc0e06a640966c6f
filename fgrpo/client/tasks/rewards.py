"""Rewards by name, for tasks that have a reference answer but no verifier of their own.

A reward is a function `(completion, answer) -> float` whose full marks are 1.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module

from fgrpo.errors import ConfigError
from fgrpo.nearest import did_you_mean

Reward = Callable[[str, str], float]

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)")


def exact_match(completion: str, answer: str) -> float:
    """1.0 if completion and answer are the same text but for surrounding white space."""
    return float(completion.strip() == answer.strip())


def number_match(completion: str, answer: str) -> float:
    """1.0 if the last number in the completion equals the last number in the answer (as in GSM8K's `#### 42`)."""
    found, expected = _last_number(completion), _last_number(answer)
    return float(found is not None and found == expected)


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def math_verify(completion: str, answer: str) -> float:
    """1.0 if math-verify finds the two mathematically equal (LaTeX and plain expressions)."""
    try:
        from math_verify import parse, verify
    except ImportError:
        raise ConfigError("reward math_verify needs the package math-verify: pip install 'fgrpo[tasks]'") from None
    # Their time limits use signals, which only the main thread may set.
    return float(
        verify(parse(answer, parsing_timeout=None), parse(completion, parsing_timeout=None), timeout_seconds=None)
    )


NAMED: dict[str, Reward] = {"exact_match": exact_match, "number_match": number_match, "math_verify": math_verify}


def reward_by_name(name: str) -> Reward:
    """Return a named reward, or the function at an import path `package.module:function`."""
    if name in NAMED:
        return NAMED[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(
            f"unknown reward '{name}'{did_you_mean(name, NAMED)} "
            f"(known: {', '.join(NAMED)}, or an import path package.module:function)"
        )
    try:
        reward: Reward = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:  # importing runs the user's own code
        raise ConfigError(f"reward '{name}' cannot be imported: {error!r}") from error
    if not callable(reward):
        raise ConfigError(f"reward '{name}' is {reward!r}, expected a function (completion, answer) -> float")
    return reward
