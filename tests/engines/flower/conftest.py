"""For the tests of clients on Flower: skipped, with a word on why, where there is no Flower."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from fgrpo.client.policy import Policy
from fgrpo.config import FlowerConfig
from fgrpo.wire.parameters import Manifest


class WithoutFlower(pytest.Module):
    def collect(self):
        pytest.skip("clients on Flower: install fgrpo[flower]", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return WithoutFlower.from_parent(parent, path=module_path) if find_spec("flwr") is None else None


@pytest.fixture(scope="module")
def config(small_config):
    return replace(small_config, clients={}, flower=FlowerConfig(min_clients=3))


@pytest.fixture(scope="module")
def manifest(config):
    return Manifest.of(Policy.load(config).model)


@pytest.fixture
def grid(manifest):
    from honest import Honest
    from local_grid import LocalGrid

    grid = LocalGrid()
    for number, name in enumerate("abc"):
        grid.nodes[number] = Honest(manifest, name)
    return grid
