"""What the global model is tried on: prompts held out, a client's own test set, the run's; and what is kept of it."""

import json
from dataclasses import replace

import pytest
import torch

from fgrpo.client.evaluation import evaluate, score, spread
from fgrpo.client.owners import Owners
from fgrpo.config import AggregationConfig, ClientConfig, Config, EvaluationConfig, PartitionConfig, TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.records import TEST_SET, Chat, Rollouts, Score, from_json, to_json


@pytest.fixture
def files(tmp_path):
    """A file of 12 questions, and one of 5, of which 2 are also in the first."""
    for name, numbers in (("train", range(12)), ("test", range(10, 15))):
        rows = [{"prompt": f"{n} + 1 =", "answer": n + 1} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def owner(files, evaluation=None, **task):
    task = TaskConfig(dataset=str(files / "train.jsonl"), **task)
    return Owners(Config(clients={"ward": ClientConfig([task])}, evaluation=evaluation or EvaluationConfig(prompts=3)))


def prompts(client):
    return [question.example.prompt for question in client.held_out()]


def trained_on(client):
    return {question.example.prompt for question in client.draw(0, 100)}


def test_a_test_file_counts_whole_and_nobody_trains_on_it(files):
    owners = owner(files, test_dataset=str(files / "test.jsonl"))
    assert prompts(owners["ward"]) == [f"{n} + 1 =" for n in range(10, 15)]
    assert trained_on(owners["ward"]) == {f"{n} + 1 =" for n in range(10)}
    (data,) = owners.describe()
    assert (data.rows, data.held_out) == (10, 5)
    assert set(data.files) == {str(files / "train.jsonl"), f"{files / 'test.jsonl'} (test set)"}


def test_a_test_split_of_the_same_file(files):
    owners = owner(files, split="train[:8]", test_split="train[8:]")
    assert prompts(owners["ward"]) == [f"{n} + 1 =" for n in range(8, 12)]
    assert trained_on(owners["ward"]) == {f"{n} + 1 =" for n in range(8)}


def test_the_runs_own_test_set_is_evaluated_beside_the_clients_and_kept_out_of_training(files):
    tasks = [TaskConfig(dataset=str(files / "test.jsonl")), TaskConfig(reasoning_gym="chain_sum")]
    owners = owner(files, EvaluationConfig(prompts=2, tasks=tasks))
    assert list(owners) == ["ward"]
    assert owners.evaluated == ["ward", TEST_SET]
    asked = prompts(owners[TEST_SET])
    assert sorted(asked[:5]) == [f"{n} + 1 =" for n in range(10, 15)]
    assert len(asked) == 7, "of a task that never ends, evaluation.prompts"
    assert not trained_on(owners["ward"]) & {*asked, *prompts(owners["ward"])}
    ward, test_set = owners.describe()
    assert (ward.client, test_set.client, test_set.held_out, test_set.notes) == ("ward", TEST_SET, 7, ())
    assert str(files / "test.jsonl") in test_set.files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reasoning_gym": "chain_sum", "dataset": None, "test_split": "test"}, "test_split are for datasets"),
        ({"test_dataset": "gone.jsonl"}, "client ward: dataset 'gone.jsonl'"),
    ],
    ids=["reasoning-gym", "missing-file"],
)
def test_a_test_set_that_cannot_be_is_named(files, change, message):
    task = replace(TaskConfig(dataset=str(files / "train.jsonl")), **change)
    with pytest.raises(ConfigError, match=message):
        Owners(Config(clients={"ward": ClientConfig([task])}))


def test_where_a_test_set_has_no_place_the_message_names_the_right_one(files):
    own = TaskConfig(dataset=str(files / "train.jsonl"), test_split="train[8:]")
    with pytest.raises(ConfigError, match=r"^partition.task: a test set is not split; name it under evaluation.tasks"):
        Owners(Config(partition=PartitionConfig(task=own, clients=2)))
    with pytest.raises(ConfigError, match=r"^evaluation.tasks: they are the test set"):
        owner(files, EvaluationConfig(tasks=[own]))


class Echo:
    """A policy whose answer is one more than the prompt's first number, and wrong where that is even."""

    def sample(self, prompts, rollout, seed, greedy):
        assert greedy
        numbers = [int(str(prompt).split()[0]) for prompt in prompts]
        mask = torch.ones(len(prompts), 1, dtype=torch.bool)
        texts = tuple(str(n + 1) if n % 2 else "none" for n in numbers)
        return Rollouts(mask.long(), mask.long(), mask, torch.zeros(len(prompts), 1), texts)


def test_samples_are_the_same_questions_every_time_with_what_the_model_made_of_them(files):
    config = Config(evaluation=EvaluationConfig(samples=2, batch_size=2))
    client = owner(files, test_dataset=str(files / "test.jsonl"))["ward"]
    result = evaluate(Echo(), client, config, 3)
    assert (result.prompts, result.accuracy) == (5, 0.4)
    assert [(s.prompt, s.answer, s.completion, s.score, s.correct) for s in result.samples] == [
        ("10 + 1 =", "11", "none", 0.0, False),
        ("12 + 1 =", "13", "none", 0.0, False),
    ]
    assert from_json(json.loads(json.dumps(to_json(result)))) == result
    assert not evaluate(Echo(), client, Config(), 3).samples, "prompts leave a client only when asked for"


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (2, Score(0.0, 0.0, 2)),  # 10 and 12
        (3, Score(2 / 3, (1 / 3) ** 0.5, 3)),  # 10, 11 and 13
        (9, Score(0.4, 0.3**0.5, 5)),
        (1, Score(0.0, 0.0, 1)),
    ],
)
def test_a_gain_is_measured_on_some_of_the_held_out_prompts(files, prompts, expected):
    config = Config(aggregation=AggregationConfig(gain_prompts=prompts))
    found = score(Echo(), owner(files, test_dataset=str(files / "test.jsonl"))["ward"], config)
    assert (found.mean, found.std, found.count) == pytest.approx((expected.mean, expected.std, expected.count))


def test_samples_of_chats_and_long_answers_are_texts_of_a_bounded_length(files):
    rows = [{"prompt": [{"role": "user", "content": "7"}], "answer": "x" * 5000}]
    (files / "test.jsonl").write_text(json.dumps(rows))
    client = owner(files, test_dataset=str(files / "test.jsonl"))["ward"]

    class Silent:
        def sample(self, prompts, rollout, seed, greedy):
            assert isinstance(prompts[0], Chat)
            return Rollouts(*[torch.ones(1, 1, dtype=torch.bool)] * 3, torch.zeros(1, 1), ("y",))

    (sample,) = evaluate(Silent(), client, Config(evaluation=EvaluationConfig(samples=3)), 0).samples
    assert sample.prompt == "user: 7"
    assert len(sample.answer) < 4100
    assert sample.answer.endswith("… (5,000 characters)")


@pytest.mark.parametrize(("count", "wanted", "places"), [(10, 3, [0, 3, 6]), (2, 5, [0, 1]), (4, 0, [])])
def test_samples_are_spread_over_the_questions(count, wanted, places):
    assert spread(count, wanted) == places
