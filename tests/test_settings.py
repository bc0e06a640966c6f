"""A configuration's mistakes are one line that names the key and the nearest right one."""

import pytest

from fgrpo.errors import ConfigError
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
        pytest.param(["--train.lr", "fast"], ["train.lr", "float", "fast"], id="wrong-type"),
        pytest.param(["--codec.codec", "int3"], ["codec.codec", "int4", "int3"], id="wrong-choice"),
        pytest.param(["--rounds", "0"], ["rounds", "got 0", "at least 1"], id="out-of-range"),
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
    assert all(word in message for word in words), message


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
