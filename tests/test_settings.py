"""A configuration's mistakes are one line that names the key and the nearest right one."""

import pytest

from fgrpo.config import Config
from fgrpo.errors import ConfigError
from fgrpo.mistakes import _ELSEWHERE, _paths
from fgrpo.settings import config_parser, read_config, to_yaml

YAML = """
clients:
  sums: {tasks: [{reasoning_gym: chain_sum, params: {min_terms: 2}}], reward_scale: 0.1}
train: {lr: 1e-3}
lora: {rank: 4}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(YAML)
    return file


def test_overrides_reach_every_level(path):
    config = read_config(
        path,
        ["--train.lr", "5e-4", "--rounds=7", "--output-dir", "a-b", "--lora", "null", "--clients.sums.reward_scale=3"],
    )
    assert (config.train.lr, config.rounds, config.output_dir, config.lora) == (5e-4, 7, "a-b", None)
    assert config.clients["sums"].reward_scale == 3.0
    assert config.clients["sums"].tasks[0].params == {"min_terms": 2}


def test_yaml_round_trip(path, tmp_path):
    config = read_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert read_config(copy) == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        pytest.param(["--train.lrr", "1"], ["train.lrr", "did you mean 'train.lr'"], id="unknown-key"),
        pytest.param(["--roundz=1"], ["roundz", "did you mean 'rounds'"], id="unknown-top-level-key"),
        pytest.param(["--lora.rnk", "1"], ["rnk", "did you mean 'rank'"], id="unknown-key-of-an-option"),
        pytest.param(["--train.lr", "fast"], ["train.lr", "a number", "fast"], id="wrong-type"),
        pytest.param(["--codec.codec", "int3"], ["codec.codec", "int4", "int3"], id="wrong-choice"),
        pytest.param(["--server.step", "x"], ["server.step: expected one of", "'decay'", "got x"], id="choice-or-null"),
        pytest.param(["--engine.workers", "x"], ["workers: expected a whole number, got x"], id="type-or-null"),
        pytest.param(["--participation.fraction", "x"], ["fraction: expected a number, got x"], id="inner"),
        pytest.param(["--rollout", "7"], ["rollout: expected keys and their values, got 7"], id="no-section"),
        pytest.param(["--clients.sums.tasks", "3"], ["clients.sums.tasks: expected a list, got 3"], id="of-a-client"),
        pytest.param(["--rounds"], ["rounds", "expected a value"], id="no-value"),
        pytest.param(["rounds=1"], ["rounds=1", "expected --key value"], id="no-dashes"),
        pytest.param(["--rounds", "0"], ["rounds", "got 0", "at least 1"], id="out-of-range"),
        pytest.param(["--lr", "1e-4"], ["unknown key 'lr'", "'train.lr' or 'server.lr'"], id="last-name"),
        pytest.param(["--train.learning_rate", "1"], ["'train.learning_rate'", "it is train.lr here"], id="of-trl"),
        pytest.param(["--num-generations", "8"], ["it is rollout.group_size here"], id="of-trl-alone"),
        pytest.param(["--codec.block", "48"], ["codec.block", "power of two"], id="block"),
        pytest.param(["--rollout.group_size", "1"], ["rollout.group_size", "at least 2"], id="group-of-one"),
        pytest.param(["--clients.sums.reward_scale", "-1"], ["clients.sums.reward_scale"], id="negative-scale"),
    ],
)
def test_a_wrong_override_is_one_line(path, overrides, words):
    with pytest.raises(ConfigError) as caught:
        read_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "configuration" not in message, "the file is not to blame"
    assert all(word in message for word in words), message


def test_what_other_libraries_call_it_is_a_key_here():
    assert set(_ELSEWHERE.values()) <= set(_paths(Config, ""))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("trian: {lr: 1}", ["trian", "did you mean 'train"], id="unknown-section"),
        pytest.param("train: {lrr: 1}", ["train.lrr", "did you mean 'train.lr'"], id="unknown-key"),
        pytest.param(
            "clients: {a: {tasks: [{reasonning_gym: x}]}}",
            ["reasonning_gym", "did you mean 'reasoning_gym'"],
            id="in-a-task",
        ),
        pytest.param("clients: {a: [1", ["parsing"], id="not-yaml"),
        pytest.param(
            "clients: {a: {tasks: []}, b: {tasks: [], reward_scale: x}}",
            ["clients.b.reward_scale: expected a number, got x"],
            id="whose",
        ),
        pytest.param("clients: {a: {tasks: [{foo: 1}]}}", ["clients.a.tasks: unknown key 'foo'"], id="whose-key"),
        pytest.param("partition: 3", ["config.yaml: partition: expected keys"], id="no-section"),
        pytest.param("rounds:", ["rounds is null"], id="null"),
        pytest.param("model: null", ["model is null"], id="null-text"),
        pytest.param("clients: {a: {tasks: [{split: null}]}}", ["clients.a.tasks.split is null"], id="null-in-a-task"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, words):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_every_key_has_help():
    help_text = config_parser().format_help()
    assert "--train.lr" in help_text
    assert "learning rate of AdamW" in help_text


@pytest.mark.parametrize(
    "name", ["1", "01", "1.5", "1e3", "0x10", "1:30", "on", "no", "null", "~", "2024-01-01", "a b"]
)
def test_names_stay_as_written(tmp_path, name):
    file = tmp_path / "config.yaml"
    file.write_text(f"clients: {{{name}: {{tasks: [{{dataset: {name}x, split: '{name}'}}]}}}}")
    config = read_config(file)
    assert list(config.clients) == [name]
    (task,) = config.clients[name].tasks
    assert (task.dataset, task.split) == (f"{name}x", name)
    file.write_text(to_yaml(config))
    assert read_config(file) == config


@pytest.mark.parametrize("value", ["1", "001", "1e3", "on", "no", "{a: 1}", "a: b", "- x", "'q'", ""])
def test_text_given_as_an_option_stays_as_written(path, value):
    config = read_config(path, ["--rollout.system_prompt", value, f"--partition.task.dataset={value}"])
    assert (config.rollout.system_prompt, config.partition.task.dataset) == (value, value)


def test_options_say_null_and_yes_and_no(path):
    config = read_config(
        path, ["--codec.error_feedback=no", "--rollout.system_prompt=null", "--partition.task.answer_column", "null"]
    )
    assert (config.codec.error_feedback, config.rollout.system_prompt) == (False, None)
    assert config.partition.task.answer_column is None


def test_an_option_for_a_section_leaves_its_other_keys(path):
    config = read_config(
        path, ["--clients.sums", "{reward_scale: 3}", "--train={lr: 1}", "--clients.sums.tasks", "[{weight: 2}]"]
    )
    (task,) = config.clients["sums"].tasks
    assert (config.clients["sums"].reward_scale, task.reasoning_gym, task.weight) == (3.0, "chain_sum", 2.0)
    assert read_config(path, ["--clients", "{1: {tasks: [{reasoning_gym: gcd}]}}"]).clients.keys() == {"1"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("clients: {a: {tasks: []}, a: {tasks: []}}", "the key 'a' is there twice", id="key-twice"),
        pytest.param("- 1", "expected keys and their values", id="a-list"),
        pytest.param("partition: {task: {dataset: x, prompt_column: null}}", "prompt_column is null", id="null-column"),
    ],
)
def test_what_yaml_lets_pass_is_refused(tmp_path, text, words):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_config(file)
