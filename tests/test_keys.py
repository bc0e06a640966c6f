"""Every key is listed with its type, default and help, and can be set."""

import pytest

from fgrpo.cli import main
from fgrpo.keys import all_keys
from fgrpo.settings import read_config


def test_every_key_has_help_and_lora_clients_and_partition_are_there():
    keys = {key.name: key for key in all_keys()}
    assert all(key.help and key.kind for key in keys.values())
    assert (keys["train.minibatches"].default, keys["codec.error_feedback"].default) == ("1", "true")
    assert (keys["lora.rank"].kind, keys["lora.rank"].default) == ("int", "16")
    assert keys["codec.codec"].kind == "int8 | int4 | int2 | bf16 | none"
    assert keys["clients.NAME.tasks[].reward"].kind == "text | list of text | mapping of number | null"
    assert {"partition.task.dataset", "participation.fraction", "rounds"} <= keys.keys()


def test_the_keys_that_are_listed_are_those_that_can_be_set(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "partition: {task: {dataset: a.jsonl}}\nparticipation: {fraction: 1}\nlora: {}"
    )
    written = ("partition", "participation", "lora")
    left_out = [key.name for key in all_keys() if "section | null" in key.kind and key.name not in written]
    for key in all_keys():
        if (
            key.default not in ("", "null", "empty")
            and "[]" not in key.name
            and not key.name.startswith(("clients.", *left_out))
        ):
            read_config(tmp_path / "config.yaml", [f"--{key.name}={key.default}"])


def test_the_listing_begins_with_the_dial_to_turn_first(capsys):
    assert main(["keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "`rounds`" in lines[0]
    assert lines[1].strip() == "rounds: int = 10"
    assert max(map(len, lines)) <= 100


def test_keys_are_found_by_a_word(capsys):
    assert main(["keys", "momentum"]) == 0
    output = capsys.readouterr().out
    assert "server.momentum: number = 0.9" in output
    assert "train.lr" not in output
    assert main(["keys", "trian.lr"]) == 1
    assert "did you mean 'train.lr'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["clients:", "train:\nrollout:\n", "{}"])
def test_an_empty_section_sets_nothing(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "empty.yaml").write_text("")
    assert read_config(tmp_path / "config.yaml") == read_config(tmp_path / "empty.yaml")
