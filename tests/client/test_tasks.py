"""Tasks, rewards, curricula, and clients made of them."""

import json
import sys
from dataclasses import replace
from importlib import metadata

import pytest

from fgrpo.client.owners import Owners, make_clients
from fgrpo.client.tasks import Curriculum, make_task
from fgrpo.client.tasks.rewards import exact_match, math_verify, number_match
from fgrpo.client.tasks.scoring import score
from fgrpo.config import ClientConfig, Config, EvaluationConfig, ParticipationConfig, PartitionConfig, TaskConfig
from fgrpo.errors import ConfigError, TaskError, how_to_install
from fgrpo.records import Completion

SUMS = TaskConfig(reasoning_gym="chain_sum", params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})


def points(task, example, completion):
    """The score of one completion."""
    (value,) = score(task.rewards, [example], [Completion(completion)], "skip").values
    return value


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}", "topic": "ab"[i % 4 == 0]} for i in range(80)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def from_file(rows, **changes):
    return TaskConfig(dataset=rows, prompt_column="question", answer_column="answer", reward="number_match", **changes)


def test_reasoning_gym_examples_depend_only_on_seed_and_index():
    one, same, other = make_task(SUMS, 1), make_task(SUMS, 1), make_task(SUMS, 2)
    assert [one.example(i) for i in (0, 7, 10**12)] == [same.example(i) for i in (0, 7, 10**12)]
    assert [one.example(i).prompt for i in range(9)] != [other.example(i).prompt for i in range(9)]


def test_reasoning_gym_verifier_scores():
    task = make_task(SUMS, 1)
    example = task.example(0)
    assert points(task, example, f" {example.answer}\n") == 1.0
    assert points(task, example, "no idea") < 1.0


def test_a_named_reward_replaces_the_verifier():
    task = make_task(TaskConfig(reasoning_gym="chain_sum", reward="number_match"), 1)
    example = task.example(0)
    assert points(task, example, f"I think it is {example.answer}") == 1.0


def test_dataset_rows_come_round_again(rows):
    task = make_task(from_file(rows), 3)
    first = [task.example(i).prompt for i in range(80)]
    assert len(set(first)) == 80
    assert first == [task.example(80 + i).prompt for i in range(80)]
    assert points(task, task.example(5), f"it is {task.example(5).answer}") == 1.0


@pytest.mark.parametrize(
    ("reward", "completion", "answer", "score"),
    [
        (exact_match, " 42 \n", "42", 1.0),
        (exact_match, "42.", "42", 0.0),
        (number_match, "so 1,024 it is", "#### 1024", 1.0),
        (number_match, "first 7, then -3.50", "-3.5", 1.0),
        (number_match, "none", "3", 0.0),
        (math_verify, r"$\frac{1}{2}$", "$0.5$", 1.0),
        (math_verify, "$2$", "$3$", 0.0),
    ],
)
def test_named_rewards(reward, completion, answer, score):
    assert reward(completion, answer) == score


def test_training_never_meets_the_held_out_prompts():
    curriculum = Curriculum(make_task(SUMS, 5), held_out=100)  # of 200 different questions
    held_out = {example.prompt for example in curriculum.held_out}
    assert len(held_out) == 100
    drawn = [curriculum.training_example(i).prompt for i in range(400)]
    assert not held_out & set(drawn)
    assert len(set(drawn)) > 80


def test_a_task_that_is_all_held_out_says_so(rows):
    curriculum = Curriculum(make_task(from_file(rows), 1), held_out=200)
    with pytest.raises(TaskError, match=r"held out.*80.*lower evaluation.prompts"):
        curriculum.training_example(0)


@pytest.mark.parametrize(
    "name", ["prime_factorization", "gsm_symbolic", "word_ladder", "list_functions", "pool_matrix"]
)
def test_awkward_tasks_of_reasoning_gym(name):
    task = make_task(TaskConfig(reasoning_gym=name), 2**47)
    example = task.example(10**9)
    assert points(task, example, "abc") < 1.0
    assert points(task, example, example.answer) == 1.0


def test_nobody_trains_on_what_another_holds_out():
    config = Config(
        clients={"a": ClientConfig([SUMS]), "b": ClientConfig([SUMS])}, evaluation=EvaluationConfig(prompts=40)
    )
    a, b = make_clients(config)
    held_out = {question.example.prompt for client in (a, b) for question in client.held_out()}
    drawn = {question.example.prompt for client in (a, b) for question in client.draw(0, 300)}
    assert not held_out & drawn


@pytest.mark.parametrize(
    ("task", "message"),
    [
        pytest.param(
            TaskConfig(reasoning_gym="chain_sumz"), r"chain_sumz.*did you mean 'chain_sum'", id="unknown-task"
        ),
        pytest.param(TaskConfig(reasoning_gym="chain_sum", params={"minterms": 2}), "minterms", id="unknown-param"),
        pytest.param(TaskConfig(reasoning_gym="chain_sum", params={"min_terms": 0}), "chain_sum", id="refused-param"),
        pytest.param(TaskConfig(dataset="gone.jsonl"), r"gone\.jsonl", id="missing-file"),
        pytest.param(TaskConfig(), "exactly one", id="neither"),
        pytest.param(
            TaskConfig(reasoning_gym="chain_sum", reward="math:pi"), "expected a function", id="not-a-function"
        ),
        pytest.param(TaskConfig(dataset="x.csv", params={"a": 1}), "params are for", id="params-of-a-dataset"),
        pytest.param(TaskConfig(reasoning_gym="chain_sum", dataset="x"), "exactly one", id="both"),
        pytest.param(
            TaskConfig(reasoning_gym="chain_sum", reward="exact_macth"),
            "did you mean 'exact_match'",
            id="unknown-reward",
        ),
        pytest.param(
            TaskConfig(reasoning_gym="chain_sum", reward="math:nothing"), "math:nothing", id="no-such-function"
        ),
    ],
)
def test_a_wrong_task_is_one_line(task, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_task(task, 0)
    assert "\n" not in str(caught.value)


def test_a_missing_column_names_the_nearest(rows):
    with pytest.raises(ConfigError, match=r"no column 'qestion'; did you mean 'question'\?"):
        make_task(TaskConfig(dataset=rows, prompt_column="qestion"), 0)


def test_a_mixture_draws_by_weight():
    other = TaskConfig(reasoning_gym="gcd", weight=3.0)
    config = Config(
        clients={"a": ClientConfig([SUMS, other], reward_scale=10.0)}, evaluation=EvaluationConfig(prompts=8)
    )
    (client,) = make_clients(config)
    names = [question.curriculum.task.name for question in client.draw(0, 400)]
    assert 0.65 < names.count("gcd") / 400 < 0.85
    assert client.draw(100, 5) == client.draw(0, 400)[100:105]
    questions = client.draw(0, 40)
    assert client.scores(questions, [Completion(q.example.answer) for q in questions]).values == [1.0] * 40
    assert len(client.held_out()) == 8


@pytest.mark.parametrize(
    ("scheme", "column", "clients"), [("iid", None, 3), ("dirichlet", "topic", 3), ("column", "topic", 2)]
)
def test_one_dataset_is_split_into_clients(rows, scheme, column, clients):
    partition = PartitionConfig(from_file(rows), clients=3, scheme=scheme, column=column)
    members = make_clients(Config(partition=partition, evaluation=EvaluationConfig(prompts=4)))
    assert len(members) == clients
    prompts = [{c.training_example(i).prompt for c in m.curricula for i in range(80)} for m in members]
    held_out = [{q.example.prompt for q in m.held_out()} for m in members]
    everything = [*prompts, *held_out]
    assert sum(map(len, everything)) == len(set().union(*everything)), "nobody shares a prompt"
    if scheme == "column":
        assert [member.name for member in members] == ["a", "b"]
        topics = [{q.example.entry["topic"] for q in m.draw(0, 20)} for m in members]
        assert [len(topic) for topic in topics] == [1, 1]


def test_shares_that_are_drawn_again_are_said_in_one_line(rows, recwarn):
    partition = PartitionConfig(from_file(rows), clients=3, scheme="dirichlet", column="topic")
    described = Owners(Config(partition=partition, evaluation=EvaluationConfig(prompts=4))).describe()
    (note,) = (note for client in described for note in client.notes)
    assert note == "partition: drawn 2 times until each client had 8 rows; a larger alpha is less skewed"
    assert not recwarn.list


def test_what_is_not_installed_is_said_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "fgrpo.client.tasks.gym", None)
    with pytest.raises(ConfigError, match=r"gcd: reasoning-gym is not installed: pip install 'reasoning-gym"):
        make_clients(Config(clients={"a": ClientConfig([TaskConfig(reasoning_gym="gcd")])}))


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("math-verify", "pip install 'math-verify[antlr4_13_2]>=0.8'"),
        ("flwr", "pip install 'flwr>=1.41,<1.43'"),
        ("vllm", "pip install 'vllm'"),
    ],
)
def test_the_command_names_the_version_that_is_wanted(package, command, monkeypatch):
    wanted = ["flwr-datasets>=0.5; extra == 'tasks'", "flwr>=1.41,<1.43", "math-verify[antlr4_13_2]>=0.8; extra"]
    monkeypatch.setattr(metadata, "requires", {"fgrpo": wanted}.get)
    assert how_to_install(package) == command


def test_clients_are_the_same_whenever_they_are_built(rows):
    partition = PartitionConfig(from_file(rows), clients=40)
    config = Config(partition=partition, evaluation=EvaluationConfig(prompts=1, clients=2))
    owners = Owners(config)
    first = [client.draw(0, 8) for client in owners.values()]  # more of them than stay built
    assert [[q.example for q in client.draw(0, 8)] for client in owners.values()] == [
        [q.example for q in questions] for questions in first
    ]
    assert [name for name, client in owners.items() if client.held_out()] == owners.evaluated
    held_out = {q.example.prompt for client in owners.values() for q in client.held_out()}
    assert len(held_out) == 2
    assert not held_out & {q.example.prompt for questions in first for q in questions}


def test_a_task_that_nobody_holds_out_is_tried_all_the_same():
    wrong = ClientConfig([TaskConfig(reasoning_gym="chain_sumz")])
    clients = {f"c{k}": ClientConfig([SUMS]) for k in range(50)}
    config = Config(evaluation=EvaluationConfig(clients=1), clients={**clients, "last": wrong})
    with pytest.raises(ConfigError, match=r"client last: .*did you mean 'chain_sum'"):
        Owners(config)


def test_clients_bear_the_names_of_their_labels(tmp_path):
    file = tmp_path / "rows.jsonl"
    labels = ["high school", "high_school", True, 1, "on", "null", "é/è", 1.50, "x" * 80]
    file.write_text(
        "".join(
            json.dumps({"prompt": f"q{i}", "answer": "a", "of": label}) + "\n" for i, label in enumerate(labels * 3)
        )
    )
    partition = PartitionConfig(TaskConfig(dataset=str(file)), scheme="column", column="of")
    members = make_clients(Config(partition=partition, evaluation=EvaluationConfig(prompts=1)))
    expected = {"high_school", "high_school-2", "true", "1", "on", "null", "é_è", "1.5", "x" * 64}
    assert {member.name for member in members} == expected


@pytest.mark.parametrize("bad", [None, ["a"], {"a": 1}, " "], ids=repr)
@pytest.mark.parametrize("scheme", ["column", "dirichlet"])
def test_a_label_that_is_none_is_refused_with_its_row(tmp_path, bad, scheme):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": "q", "answer": "a", "of": label}) + "\n" for label in ["a", bad]))
    partition = PartitionConfig(TaskConfig(dataset=str(file)), scheme=scheme, column="of")
    with pytest.raises(ConfigError, match=r"rows\.jsonl', row 2, column 'of': it is"):
        make_clients(Config(partition=partition))


def test_iid_shares_of_a_sorted_file_are_alike(rows):
    partition = PartitionConfig(from_file(rows), clients=4, scheme="iid")
    members = make_clients(Config(partition=partition, evaluation=EvaluationConfig(prompts=1)))
    thirds = [[int(m.curricula[0].task.example(i).answer.split()[1]) > 40 for i in range(20)] for m in members]
    assert all(4 <= sum(high) <= 16 for high in thirds), "each client has rows of both halves of the file"


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(Config(), id="nobody"),
        pytest.param(
            Config(clients={"a": ClientConfig([SUMS])}, participation=ParticipationConfig(clients_per_round=2)),
            id="more-than-there-are",
        ),
        pytest.param(Config(clients={"a/b": ClientConfig([SUMS])}), id="bad-name"),
        pytest.param(Config(clients={"a": ClientConfig([])}), id="no-tasks"),
        pytest.param(Config(partition=PartitionConfig(SUMS)), id="partition-of-no-dataset"),
    ],
)
def test_impossible_clients_are_refused(config):
    with pytest.raises(ConfigError):
        make_clients(config)


def test_clients_tell_what_they_have(rows):
    partition = PartitionConfig(from_file(rows), scheme="column", column="topic")
    members = make_clients(Config(partition=partition, evaluation=EvaluationConfig(prompts=6)))
    a, b = (member.data() for member in members)
    assert (a.client, a.rows, a.held_out, a.labels) == ("a", 60 - 6, 6, {"a": 54})
    assert (b.client, b.rows, b.held_out, b.labels) == ("b", 20 - 6, 6, {"b": 14})
    assert [member.rows for member in members] == [54, 14]
    assert a.files.keys() == {rows}
    (endless,) = make_clients(Config(clients={"x": ClientConfig([SUMS, from_file(rows)])}))
    assert (endless.rows, endless.data().rows) == (None, None)


def test_a_client_without_a_training_row_takes_no_part_and_says_so(rows):
    partition = PartitionConfig(from_file(rows), scheme="column", column="topic")
    a, b = make_clients(Config(partition=partition, evaluation=EvaluationConfig(prompts=20)))
    assert a.can_train
    assert a.data().notes == []
    assert not b.can_train
    assert b.data().rows == 0
    assert "client b: task" in b.data().notes[0]
    assert "20 by itself); the client takes no part" in b.data().notes[0]
    with pytest.raises(ConfigError, match="no client has anything to train on: client a: task"):
        make_clients(Config(partition=partition, evaluation=EvaluationConfig(prompts=80)))


def test_clients_are_described_without_being_built(rows, monkeypatch):
    partition = PartitionConfig(from_file(rows), scheme="column", column="topic")
    tasks = ClientConfig([from_file(rows), SUMS])
    for config in (
        Config(partition=partition, evaluation=EvaluationConfig(prompts=20)),
        Config(partition=partition, evaluation=EvaluationConfig(prompts=6, clients=1)),
        Config(clients={f"c{k}": tasks for k in range(4)}, evaluation=EvaluationConfig(prompts=12, clients=2)),
    ):
        owners = Owners(config)
        assert owners.taking_part == [name for name, client in owners.items() if client.can_train]
        assert owners.describe() == [client.data() for client in owners.values()]
        with monkeypatch.context() as patched:
            patched.setattr(type(owners), "__getitem__", None)
            assert len(owners.describe()) == len(owners)


def test_who_has_nothing_to_train_on_is_neither_asked_nor_evaluated(rows):
    partition = PartitionConfig(from_file(rows), scheme="column", column="topic")
    config = Config(partition=partition, evaluation=EvaluationConfig(prompts=20))
    owners = Owners(config)
    assert list(owners) == ["a", "b"]
    assert owners.taking_part == owners.evaluated == ["a"]
    with pytest.raises(TaskError, match=r"client b: task .* has nothing to train on"):
        owners["b"].draw(0, 1)
    asked = ParticipationConfig(clients_per_round=2)
    with pytest.raises(ConfigError, match="got 2 of 1 clients"):
        Owners(replace(config, participation=asked))


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_a_task_without_a_training_row_leaves_the_mixture(rows, kind):
    few_pairs = TaskConfig(
        reasoning_gym="gcd", params={"min_value": 2, "max_value": 3, "min_numbers": 2, "max_numbers": 2}
    )
    empty = from_file(rows) if kind == "rows" else few_pairs
    config = Config(clients={"x": ClientConfig([empty, SUMS])}, evaluation=EvaluationConfig(prompts=160))
    (client,) = make_clients(config)
    assert {question.curriculum.task.name for question in client.draw(0, 50)} == {"chain_sum"}
    assert "this task takes no part" in client.data().notes[0]
