"""Reward functions as their authors write them: for one completion or TRL's way, async, weighted, and failing."""

import asyncio
import math
import textwrap

import pytest
import torch

from fgrpo.client.tasks.rewards import make_rewards
from fgrpo.client.tasks.scoring import score
from fgrpo.errors import ConfigError, TaskError
from fgrpo.records import Chat, Completion, Example

EXAMPLES = [
    Example("1 + 1?", "2", {"question": "1 + 1?", "answer": "2", "level": 1}),
    Example(Chat.of([{"role": "user", "content": "2 + 2?"}]), "4", {"question": "2 + 2?", "level": 2}),
    Example("3 + 3?", "6", {"question": "3 + 3?", "answer": "6", "level": 3}),
]
COMPLETIONS = [Completion("2", (7, 8)), Completion("five", (9,)), Completion("6", (1, 2, 3))]
COLUMNS = ["question", "answer", "level"]


def plain(text, target):
    return text == target


def with_default(completion, answer, bonus=0.5):
    return bonus


def short(completion):
    return len(completion)


def trl(prompts, completions, level, **kwargs):
    assert kwargs["answer"] == ["2", None, "6"][: len(prompts)] or len(prompts) == 1
    assert "prompt" not in kwargs
    return [
        float(number) if isinstance(c, str) else len(c[0]["content"])
        for number, c in zip(level, completions, strict=True)
    ]


def ids_and_chats(completion_ids, prompts):
    return [len(i) + 10 * isinstance(p, list) for i, p in zip(completion_ids, prompts, strict=True)]


def everything(**kwargs):
    assert {"prompts", "completions", "completion_ids", "question", "level"} <= kwargs.keys()
    return torch.ones(len(kwargs["prompts"]))


def sometimes(completions, **kwargs):
    return [None, 1.0, 2][: len(completions)]


_together = []


async def slow(completion, answer):
    _together.append(completion)
    await asyncio.sleep(0.01)
    assert len(_together) == len(COMPLETIONS), "all are waited for at once"
    return 1.0


async def slow_batch(completions, **kwargs):
    await asyncio.sleep(0)
    return [0.25] * len(completions)


class Callable:
    def __call__(self, completion, answer):
        return 3


instance = Callable()


def run(spec, on_error="skip"):
    spec = f"{__name__}:{spec}" if isinstance(spec, str) and spec != "exact_match" else spec
    return score(make_rewards(spec, COLUMNS), EXAMPLES, COMPLETIONS, on_error)


@pytest.mark.parametrize(
    ("function", "values"),
    [
        ("plain", [1.0, 0.0, 1.0]),
        ("exact_match", [1.0, 0.0, 1.0]),
        ("with_default", [0.5] * 3),
        ("short", [1.0, 4.0, 1.0]),
        ("trl", [1.0, 4.0, 3.0]),
        ("ids_and_chats", [2.0, 11.0, 3.0]),
        ("everything", [1.0] * 3),
        ("slow", [1.0] * 3),
        ("slow_batch", [0.25] * 3),
        ("instance", [3.0] * 3),
    ],
)
def test_the_signature_says_how_a_function_is_called(function, values):
    scores = run(function)
    assert (scores.failure, scores.values) == ("", values)


def test_several_rewards_are_summed_by_weight_and_the_first_judges():
    scores = run({"exact_match": 1.0, f"{__name__}:sometimes": 0.5, f"{__name__}:short": -0.1})
    assert scores.values == pytest.approx([1 - 0.1, 0.5 - 0.4, 1 + 1 - 0.1])
    assert scores.correct == [True, False, True]
    assert math.isnan(scores.parts[f"{__name__}:sometimes"][0])
    assert run([f"{__name__}:sometimes"]).values[1:] == [1.0, 2.0], "None alone: no score"
    assert math.isnan(run("sometimes").values[0])
    assert run("sometimes").failures == 0


def picky(completion, answer):
    return float(completion)


def picky_batch(completions, **kwargs):
    return [float(c if isinstance(c, str) else c[0]["content"]) for c in completions]


async def picky_async(completion, answer):
    return float(completion)


def leaving(completion, answer):
    return 1.0 if completion != "five" else exit(3)


def not_a_number(completion, answer):
    return float("nan") if completion == "five" else 1.0


def infinite(completions, **kwargs):
    return [math.inf if len(c) == 1 and not isinstance(c, str) else 1.0 for c in completions]


def text(completion, answer):
    return "1.0" if completion == "five" else 1.0


FAILING = {
    "picky": "ValueError: could not convert string to float: 'five', for the completion 'five'",
    "picky_batch": "ValueError: could not convert string to float: 'five', for the completion 'five'",
    "picky_async": "ValueError",
    "leaving": "SystemExit: 3",
    "not_a_number": "returned nan, expected a finite number",
    "infinite": "returned inf",
    "text": "returned '1.0', expected a finite number",
}


@pytest.mark.parametrize("function", FAILING)
def test_one_failing_completion_leaves_or_counts_0_or_raises(function):
    skipped, zero = run(function), run(function, "zero")
    assert [math.isnan(value) for value in skipped.values] == [False, True, False]
    assert zero.values == [skipped.values[0], 0.0, skipped.values[2]]
    assert skipped.failures == zero.failures == 1
    assert FAILING[function] in skipped.failure
    with pytest.raises(TaskError) as caught:
        run(function, "raise")
    assert str(caught.value) == skipped.failure
    assert "\n" not in skipped.failure


def test_a_failure_shows_the_users_own_line(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        textwrap.dedent("""\
        import json


        def read(text):
            return json.loads(text)


        def mine(completion, answer):
            return read(completion)["a"]
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    rewards = make_rewards("my_rewards:mine", [])
    scores = score(rewards, EXAMPLES[:1], [Completion("{")], "skip")
    assert scores.failure.startswith("reward 'my_rewards:mine' failed (my_rewards.py:5): JSONDecodeError: ")


def few(completions, **kwargs):
    return [1.0]


def test_a_list_of_another_length_is_an_error_whatever_the_policy():
    with pytest.raises(TaskError, match=r"few' \(.*test_rewards\.py:\d+\) returned 1 rewards, expected a list of 3"):
        run("few", "zero")


def stranger(completions, levle):
    return []


def four(a, b, c, d):
    return 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"{__name__}:stranger", r"test_rewards\.py:\d+\) asks for 'levle'; did you mean 'level'\?"),
        (f"{__name__}:four", r"takes \(a, b, c, d\), expected \(completion, answer\), or TRL's keywords"),
        ([], "expected at least one reward"),
        ("exact_match", "answer_column is null"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_at_the_start(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_rewards(spec, COLUMNS, has_answers=False)


def test_a_module_that_fails_shows_its_line(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("x = 1\nx / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"ZeroDivisionError.*broken_rewards\.py:2\)"):
        make_rewards("broken_rewards:f", [])


@pytest.mark.parametrize("function", ["think_format_reward", "get_soft_overlong_punishment"])
def test_rewards_of_trl_itself(function):
    trl_rewards = pytest.importorskip("trl.rewards")
    from fgrpo.client.tasks.calling import adapted

    chat = Example(EXAMPLES[1].prompt, "4", {})
    reward = getattr(trl_rewards, function)
    if function.startswith("get"):
        reward = reward(max_completion_len=4, soft_punish_cache=2)
    got = adapted(function, reward, [])(
        [chat] * 2, [Completion("<think>\na\n</think>\n4", (1,)), Completion("", (1,) * 9)]
    )
    assert got == ([1.0, 0.0] if function.startswith("think") else [0.0, -1.0])
