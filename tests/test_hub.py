"""Where the hub does not answer, what was never fetched is an error in seconds, and the rest comes from the disk."""

import http.server
import os
import socket
import threading
import time

import pytest
from huggingface_hub import constants

from fgrpo.config import ClientConfig, Config, PartitionConfig, TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.hub import hub_or_disk


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path


@pytest.fixture
def silent(monkeypatch):
    """A hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


@pytest.fixture
def closed(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


CASES = [
    (Config(model="org/gone"), "model: 'org/gone'"),
    (Config(clients={"a": ClientConfig([TaskConfig(dataset="org/gone")])}), "clients.a.tasks: dataset: 'org/gone'"),
    (Config(partition=PartitionConfig(TaskConfig(dataset="gone"))), "partition.task: dataset: 'gone'"),
]


@pytest.mark.parametrize(("config", "words"), CASES, ids=["model", "task", "partition"])
def test_what_was_never_fetched_is_an_error(cache, closed, config, words):
    with pytest.raises(ConfigError) as caught, hub_or_disk(config):
        pass
    assert str(caught.value).startswith(f"{words} is not on this disk, and http://127.0.0.1:1 cannot be reached")


@pytest.mark.parametrize("name", ["gone.jsonl", "data/gone.csv", "./gone", "/gone/model", "a/b/gone", "data/*.parquet"])
def test_a_path_that_leads_nowhere_is_an_error_at_once(cache, silent, name):
    clients = {"a": ClientConfig([TaskConfig(dataset=name)])}
    for config, key in ((Config(model=name), "model"), (Config(clients=clients), "clients.a.tasks: dataset")):
        with pytest.raises(ConfigError) as caught, hub_or_disk(config):
            pass
        assert str(caught.value).startswith(f"{key}: there is no '{name}'")


def test_a_hub_that_says_nothing_is_not_waited_for(cache, silent):
    began = time.monotonic()
    with pytest.raises(ConfigError), hub_or_disk(CASES[0][0]):
        pass
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("config", "folder"), [(CASES[0][0], "hub/models--org--gone"), (CASES[1][0], "datasets/org___gone")]
)
def test_what_was_fetched_comes_from_the_disk(cache, closed, config, folder):
    (cache / folder).mkdir(parents=True)
    with hub_or_disk(config):
        assert (os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE) == ("1", True)
    assert ("HF_HUB_OFFLINE" in os.environ, constants.HF_HUB_OFFLINE) == (False, False)


def test_a_hub_that_answers_is_asked(cache, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:  # answers 501
        monkeypatch.setattr(server.RequestHandlerClass, "log_message", lambda *_: None)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with hub_or_disk(CASES[0][0]):
            assert "HF_HUB_OFFLINE" not in os.environ
        server.shutdown()


def test_nobody_asks_for_what_is_on_the_disk(cache, closed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "rows.csv").touch()
    datasets = ("rows.csv", "*.csv", "https://a.b/c.csv")
    tasks = [TaskConfig(reasoning_gym="gcd"), *(TaskConfig(dataset=name) for name in datasets)]
    for model in ("tiny", "own", str(tmp_path / "own")):
        with hub_or_disk(Config(model=model, clients={"a": ClientConfig(tasks)})):
            assert "HF_HUB_OFFLINE" not in os.environ
