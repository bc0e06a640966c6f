"""Tasks, rewards, curricula, and clients made of them."""

import json

import pytest

from fgrpo.client.owners import Owners, make_clients
from fgrpo.client.tasks import Curriculum, make_task
from fgrpo.client.tasks.rewards import exact_match, math_verify, number_match
from fgrpo.config import ClientConfig, Config, EvaluationConfig, ParticipationConfig, PartitionConfig, TaskConfig
from fgrpo.errors import ConfigError, TaskError
from fgrpo.records import Example

SUMS = TaskConfig(reasoning_gym="chain_sum", params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})


def always_nan(completion, answer):
    return float("nan")


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
    assert task.score(example, f" {example.answer}\n") == 1.0
    assert task.score(example, "no idea") < 1.0


def test_a_named_reward_replaces_the_verifier():
    task = make_task(TaskConfig(reasoning_gym="chain_sum", reward="number_match"), 1)
    example = task.example(0)
    assert task.score(example, f"I think it is {example.answer}") == 1.0


def test_dataset_rows_come_round_again(rows):
    task = make_task(from_file(rows), 3)
    first = [task.example(i).prompt for i in range(80)]
    assert len(set(first)) == 80
    assert first == [task.example(80 + i).prompt for i in range(80)]
    assert task.score(task.example(5), f"it is {task.example(5).answer}") == 1.0


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


def test_a_reward_that_is_not_a_number_is_refused():
    task = make_task(TaskConfig(reasoning_gym="chain_sum", reward=f"{__name__}:always_nan"), 1)
    with pytest.raises(TaskError, match=r"chain_sum.*returned nan"):
        Curriculum(task, 1).score(Example("", "", {}), "5")


def raising(completion, answer):
    raise KeyError("oops")


def test_a_reward_that_raises_is_named():
    task = make_task(TaskConfig(reasoning_gym="chain_sum", reward=f"{__name__}:raising"), 1)
    with pytest.raises(TaskError, match=r"chain_sum: the reward function failed on '5'.*oops"):
        Curriculum(task, 1).score(Example("", "", {}), "5")


@pytest.mark.parametrize(
    "name", ["prime_factorization", "gsm_symbolic", "word_ladder", "list_functions", "pool_matrix"]
)
def test_awkward_tasks_of_reasoning_gym(name):
    task = make_task(TaskConfig(reasoning_gym=name), 2**47)
    example = task.example(10**9)
    assert task.score(example, "abc") < 1.0
    assert task.score(example, example.answer) == 1.0


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
    question = client.draw(0, 1)[0]
    assert client.reward(question, question.example.answer) == 10.0
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
        topics = [{q.example.entry["topic"] for q in m.draw(0, 20)} for m in members]
        assert [len(topic) for topic in topics] == [1, 1]


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
