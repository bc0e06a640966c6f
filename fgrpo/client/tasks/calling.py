"""Calling reward functions: `(completion, answer)` for one completion, or TRL's keywords for many; async or not."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any

from fgrpo.client.tasks.scoring import Outcome, RewardFailure, RewardFunction
from fgrpo.errors import ConfigError, FgrpoError, TaskError
from fgrpo.importing import shown_path
from fgrpo.nearest import did_you_mean
from fgrpo.records import Chat, Completion, Example

_OF_A_BATCH = ("prompts", "completions", "completion_ids")


def adapted(name: str, function: Callable[..., Any], columns: Sequence[str]) -> RewardFunction:
    """Return a user's function in the form that scoring calls; its parameters' names say which kind it is.

    Args:
        columns: names of the columns of the data, which a function of TRL's kind may ask for.

    Raises:
        ConfigError: it takes something that nobody could give it.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have none
        return PerCompletion(name, function, takes_answer=True)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    positional = [p for p in named if p.kind is not p.KEYWORD_ONLY and p.default is p.empty]
    if not any(p.name in _OF_A_BATCH for p in named) and (positional or not takes_all):
        required = [p for p in named if p.default is p.empty]
        several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if required != positional or not (1 <= len(positional) <= 2 or several):
            raise ConfigError(
                f"reward '{name}' ({_place(function)}) takes ({', '.join(p.name for p in required)}), expected "
                "(completion, answer), or TRL's keywords: prompts, completions and columns of the data"
            )
        return PerCompletion(name, function, takes_answer=len(positional) != 1)
    known = (*_OF_A_BATCH, *columns, "answer")
    for parameter in named:
        if parameter.name not in known and parameter.default is parameter.empty:
            raise ConfigError(
                f"reward '{name}' ({_place(function)}) asks for '{parameter.name}'"
                f"{did_you_mean(parameter.name, known)} (there are: {', '.join(dict.fromkeys(known))})"
            )
    return Batched(name, function, None if takes_all else [p.name for p in named if p.name in known])


class PerCompletion:
    """A function `(completion, answer) -> float`, or `(completion) -> float`; async ones run side by side."""

    def __init__(self, name: str, function: Callable[..., Any], takes_answer: bool) -> None:
        self.name, self._function, self._takes_answer = name, function, takes_answer

    def __call__(self, examples: Sequence[Example], completions: Sequence[Completion]) -> list[Outcome]:
        texts = [completion.text for completion in completions]
        arguments = (
            [(text, example.answer) for text, example in zip(texts, examples, strict=True)]
            if self._takes_answer
            else [(text,) for text in texts]
        )
        results = _settled([_attempt(self._function, *each) for each in arguments])
        return [_outcome(self.name, self._function, result, text) for result, text in zip(results, texts, strict=True)]


class Batched:
    """A function of TRL's kind: keywords in, each a list over completions, and a list of floats or None out.

    Args:
        wanted: the keywords that it takes; None if it takes all there are.
    """

    def __init__(self, name: str, function: Callable[..., Any], wanted: Sequence[str] | None) -> None:
        self.name, self._function, self._wanted = name, function, wanted

    def __call__(self, examples: Sequence[Example], completions: Sequence[Completion]) -> list[Outcome]:
        (result,) = _settled([_attempt(self._function, **self._keywords(examples, completions))])
        if isinstance(result, BaseException):
            if len(completions) == 1:
                return [_outcome(self.name, self._function, result, completions[0].text)]
            # Which one was it? The others keep their rewards.
            alone = [self([example], [c]) for example, c in zip(examples, completions, strict=True)]
            return [outcome for (outcome,) in alone]
        try:
            rewards = list(result)
        except TypeError:
            rewards = None
        if rewards is None or isinstance(result, str) or len(rewards) != len(completions):
            got = f"{len(rewards)} rewards" if rewards is not None else f"{result!r:.60}"
            raise TaskError(
                f"reward '{self.name}' ({_place(self._function)}) returned {got}, expected a list of "
                f"{len(completions)}, one for each completion"
            )
        return [
            _outcome(self.name, self._function, reward, completion.text)
            for reward, completion in zip(rewards, completions, strict=True)
        ]

    def _keywords(self, examples: Sequence[Example], completions: Sequence[Completion]) -> dict[str, list[Any]]:
        columns = dict.fromkeys(column for example in examples for column in example.entry)
        keywords: dict[str, list[Any]] = {"answer": [example.answer for example in examples]}
        keywords |= {column: [example.entry.get(column) for example in examples] for column in columns}
        for reserved in ("prompt", "completion"):  # as in TRL, where the plural has them
            keywords.pop(reserved, None)
        prompts = [example.prompt for example in examples]
        keywords["prompts"] = [p.messages if isinstance(p, Chat) else p for p in prompts]
        keywords["completions"] = [
            [{"role": "assistant", "content": c.text}] if isinstance(p, Chat) else c.text
            for p, c in zip(prompts, completions, strict=True)
        ]
        keywords["completion_ids"] = [list(c.token_ids) for c in completions]
        if self._wanted is None:
            return keywords
        return {name: keywords.get(name, [None] * len(examples)) for name in self._wanted}


def _attempt(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Return the function's result, or the exception that it raised: also that of `exit()`."""
    try:
        return function(*arguments, **keywords)
    except FgrpoError:
        raise
    except (Exception, SystemExit) as error:
        return error


def _settled(results: list[Any]) -> list[Any]:
    """Return results with what is awaitable among them awaited, all at the same time."""
    waiting = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
    if waiting:

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(_awaited(results[i]) for i in waiting))

        done = asyncio.run_coroutine_threadsafe(all_of_them(), _event_loop(os.getpid())).result()
        for i, result in zip(waiting, done, strict=True):
            results[i] = result
    return results


async def _awaited(result: Awaitable[Any]) -> Any:
    try:
        return await result
    except (Exception, SystemExit) as error:
        return error


@cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Return this process's loop, in a thread of its own: a user's open sessions stay usable from call to call."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="fgrpo-rewards", daemon=True).start()
    return loop


def _outcome(name: str, function: Callable[..., Any], result: Any, completion: str) -> Outcome:
    """Return what a function gave one completion as a finite float, None, or a failure."""
    if result is None:
        return None
    of = f"for the completion {completion!r:.60}"
    if isinstance(result, BaseException):
        what = f"{type(result).__name__}: {result}".strip().splitlines()[0]
        return RewardFailure(f"reward '{name}' failed ({_place(function, result)}): {what}, {of}", result)
    try:
        reward = math.nan if isinstance(result, str) else float(result)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        reward = math.nan
    if not math.isfinite(reward):
        returned = f"returned {result!r:.60}, expected a finite number"
        return RewardFailure(f"reward '{name}' ({_place(function)}) {returned}, {of}")
    return reward


def _place(function: Callable[..., Any], error: BaseException | None = None) -> str:
    """Return file and line: where the user's own code raised an error, or where the function is defined."""
    plain: Any = inspect.unwrap(function)
    code = getattr(plain, "__code__", None) or getattr(type(plain).__call__, "__code__", None)
    file, line = (code.co_filename, code.co_firstlineno) if code else (None, 0)
    frames = traceback.extract_tb(error.__traceback__)[1:] if error is not None else []
    own = [frame for frame in frames if frame.filename == file] or frames
    if own:
        file, line = own[-1].filename, own[-1].lineno or 0
    return f"{shown_path(file)}:{line}" if file else "no source"
