"""A reward's import path that leads nowhere is told with where it was looked for, or where it fails."""

import sys

import pytest

from fgrpo.client.tasks.rewards import NAMED
from fgrpo.config import NAMED_REWARDS, ClientConfig, Config, RewardsConfig, TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.importing import find_rewards


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "judge_of_a_test", raising=False)
    (tmp_path / "judge_of_a_test.py").write_text("best = 3\n\n\ndef near(completion, answer):\n    return 1.0\n")
    (tmp_path / "broken_of_a_test.py").write_text("import math\n\nmath.no_such\n")
    (tmp_path / "needs_of_a_test.py").write_text("import no_such_package\n")
    return tmp_path


def find(folder, reward):
    task = TaskConfig(dataset="rows.jsonl", reward=reward)
    find_rewards(Config(clients={"a": ClientConfig(tasks=[task])}, rewards=RewardsConfig(folder=str(folder))))


@pytest.mark.parametrize("reward", [None, "exact_match", ["number_match", "judge_of_a_test:near"]])
def test_what_is_there_is_found(folder, reward):
    find(folder, reward)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("exactmatch", ["unknown reward 'exactmatch'", "did you mean 'exact_match'?"]),
        ({"exact_match": 1, "exactmatch": 2}, ["unknown reward 'exactmatch'"]),
        ("judge_of_a_tset:near", ["no module 'judge_of_a_tset'", "did you mean 'judge_of_a_test'?"]),
        ("judge_of_a_test:nearr", ["judge_of_a_test.py has no 'nearr'", "did you mean 'near'?"]),
        ("judge_of_a_test:best", ["is 3, expected a function"]),
        ("broken_of_a_test:near", ["AttributeError: module 'math' has no", "broken_of_a_test.py:3)"]),
        ("needs_of_a_test:near", ["No module named 'no_such_package'", "needs_of_a_test.py:1)"]),
    ],
)
def test_what_is_not_is_one_line(folder, reward, words):
    with pytest.raises(ConfigError) as caught:
        find(folder, reward)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_the_names_are_those_that_there_are():
    assert tuple(NAMED) == NAMED_REWARDS
