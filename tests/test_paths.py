"""Paths in a configuration lead from its own folder, else from the working folder; a run goes on from anywhere."""

import importlib
import os
import sys
from pathlib import Path

import pytest

from fgrpo.config import Config, RewardsConfig
from fgrpo.importing import find_rewards
from fgrpo.settings import read_config, to_yaml

YAML = """
model: models/own
clients:
  a: {tasks: [{dataset: data/a.jsonl, test_dataset: data/b.csv}, {reasoning_gym: chain_sum}]}
  b: {tasks: [{dataset: "data/*.csv"}, {dataset: openai/gsm8k}, {dataset: elsewhere.jsonl}]}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a configuration and its data, in a working folder that has other data."""
    for file in ("project/data/a.jsonl", "project/data/b.csv", "project/models/own/config.json", "elsewhere.jsonl"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "project" / "config.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "project"


def paths(config):
    return [config.model, *(task.dataset for client in config.clients.values() for task in client.tasks)]


def test_paths_lead_from_the_configurations_folder(project):
    found = ["project/models/own", "project/data/a.jsonl", None, "project/data/*.csv", "openai/gsm8k"]
    assert paths(read_config("project/config.yaml")) == [*found, "elsewhere.jsonl"]
    os.chdir(project)
    assert paths(read_config("config.yaml")) == [
        *("models/own", "data/a.jsonl", None, "data/*.csv", "openai/gsm8k", "elsewhere.jsonl"),
    ]


def test_the_packaged_model_is_no_path(project):
    (project / "tiny").mkdir()
    (project / "config.yaml").write_text("model: tiny")
    assert read_config("project/config.yaml").model == "tiny"


def test_what_a_run_keeps_leads_to_the_same_files_from_anywhere(project, tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    before = read_config("project/config.yaml")
    (run / "config.yaml").write_text(to_yaml(before, run))
    kept = (run / "config.yaml").read_text()
    assert before.clients["a"].tasks[0].test_dataset == "project/data/b.csv"
    assert str(tmp_path) not in kept, "the project can be moved as a whole"
    assert "../../project/data/a.jsonl" in kept
    assert read_config("runs/one/config.yaml") == before
    (tmp_path / "other").mkdir()
    os.chdir(tmp_path / "other")
    link = tmp_path / "other" / "latest"
    link.symlink_to(run)
    for path in (run, link):
        config = read_config(path / "config.yaml")
        assert paths(config)[1] == str(project / "data" / "a.jsonl")
        assert config.rewards.folder == str(project)


def test_a_file_that_is_a_link_keeps_its_name(project):
    (project / "data" / "a.jsonl").unlink()
    (project / "data" / "a.jsonl").symlink_to(project / "data" / "b.csv")
    assert paths(read_config("project/config.yaml"))[1] == "project/data/a.jsonl"


def test_test_sets_are_found_beside_the_configuration_too(project):
    (project / "config.yaml").write_text(
        "clients: {a: {tasks: [{dataset: data/a.jsonl, test_dataset: data/b.csv}]}}\n"
        "evaluation: {tasks: [{dataset: data/b.csv}]}"
    )
    config = read_config("project/config.yaml")
    assert config.clients["a"].tasks[0].test_dataset == "project/data/b.csv"
    assert config.evaluation.tasks[0].dataset == "project/data/b.csv"


def test_rewards_are_importable_from_the_configurations_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "rewards_beside.py").write_text("def one(completion):\n    return 1.0\n")
    find_rewards(Config(rewards=RewardsConfig(folder=str(tmp_path))))
    assert importlib.import_module("rewards_beside").one("") == 1.0


def test_a_path_in_an_option_leads_from_here_then_from_the_configurations_folder(tmp_path, monkeypatch):
    project, here = tmp_path / "project", tmp_path / "here"
    for folder, names in ((project, ("both.csv", "there.csv")), (here, ("both.csv",))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("prompt,answer\n1,2\n")
    (project / "config.yaml").write_text("partition: {clients: 2, task: {dataset: there.csv}}\n")
    monkeypatch.chdir(here)

    def dataset(*overrides):
        return Path(read_config(project / "config.yaml", overrides).partition.task.dataset)

    assert dataset().resolve() == project / "there.csv"
    assert dataset("--partition.task.dataset", "both.csv").resolve() == here / "both.csv"
    assert dataset("--partition.task.dataset", "there.csv").resolve() == project / "there.csv"
    assert dataset("--partition.task.dataset", "nowhere.csv") == Path("nowhere.csv")
