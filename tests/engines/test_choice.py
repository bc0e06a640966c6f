"""Which engine a run gets when it does not ask for one."""

import os

import pytest
import torch

from fgrpo.config import (
    ClientConfig,
    Config,
    EngineConfig,
    LoraConfig,
    ParticipationConfig,
    PartitionConfig,
    TaskConfig,
)
from fgrpo.engines import choice
from fgrpo.show.text import engine

GB = 10**9
ALL = torch.get_num_threads()
FOUR = {name: ClientConfig([TaskConfig(reasoning_gym="gcd")]) for name in "abcd"}


@pytest.fixture
def machine(monkeypatch):
    def use(cores=8, memory=64 * GB, parameters=700_000):
        monkeypatch.setattr(choice, "_cores", lambda: cores)
        monkeypatch.setattr(choice, "_memory", lambda: memory)
        monkeypatch.setattr(choice, "_parameters", lambda config: parameters)
        monkeypatch.delitem(os.environ, "OMP_NUM_THREADS", raising=False)

    return use


@pytest.mark.parametrize(
    ("about", "config", "expected"),
    [
        pytest.param({}, Config(clients=FOUR), (4, 1), id="a-worker-a-client"),
        pytest.param({"cores": 2}, Config(clients=FOUR), (2, 1), id="a-worker-a-core"),
        pytest.param({"cores": 1}, Config(clients=FOUR), (0, 1), id="one-core"),
        pytest.param({}, Config(clients={"a": FOUR["a"]}), (0, 1), id="one-client"),
        pytest.param({"parameters": 135_000_000}, Config(clients=FOUR), (4, 2), id="larger-model"),
        pytest.param({"parameters": 135_000_000, "memory": 9 * GB}, Config(clients=FOUR), (0, ALL), id="no-room"),
        pytest.param(
            {"parameters": 135_000_000, "memory": 9 * GB},
            Config(clients=FOUR, lora=LoraConfig()),
            (4, 2),
            id="room-for-adapters",
        ),
        pytest.param({"parameters": None}, Config(clients=FOUR), (0, ALL), id="unknown-size"),
        pytest.param({}, Config(clients=FOUR, engine=EngineConfig(stacked=True)), (0, 1), id="stacked"),
        pytest.param(
            {}, Config(clients=FOUR, participation=ParticipationConfig(fraction=0.5)), (2, 1), id="half-take-part"
        ),
        pytest.param({}, Config(partition=PartitionConfig(TaskConfig(), clients=3)), (3, 1), id="partition"),
        pytest.param(
            {},
            Config(partition=PartitionConfig(TaskConfig(), scheme="column", column="x")),
            (8, 1),
            id="unknown-clients",
        ),
        pytest.param({}, Config(clients=FOUR, engine=EngineConfig(workers=0)), (0, 1), id="asked-in-process"),
        pytest.param({}, Config(clients=FOUR, engine=EngineConfig(threads=3)), (2, 3), id="asked-threads"),
    ],
)
def test_workers_and_threads(machine, about, config, expected):
    machine(**about)
    chosen = choice.chosen(config)
    assert (chosen.workers, chosen.threads) == expected


def test_threads_of_the_environment_count(machine, monkeypatch):
    machine(parameters=135_000_000)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choice.chosen(Config(clients=FOUR)) == EngineConfig(4, torch.get_num_threads())


def test_the_packaged_model_is_counted():
    parameters = choice._parameters(Config())
    assert parameters is not None
    assert 100_000 < parameters < 10_000_000
    assert choice._parameters(Config(model="nobody/has-this")) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EngineConfig(0, 1), "this process, 1 thread"),
        (EngineConfig(0, 1, stacked=True), "this process, clients stacked, 1 thread"),
        (EngineConfig(1, 2), "1 worker x 2 threads"),
        (EngineConfig(2, 1), "2 workers x 1 thread"),
    ],
)
def test_it_is_said_in_a_few_words(config, words):
    assert engine(config) == words
