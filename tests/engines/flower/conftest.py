"""For the tests of clients on Flower: skipped, with a word on why, where there is no Flower."""

from importlib.util import find_spec

import pytest


class WithoutFlower(pytest.Module):
    def collect(self):
        pytest.skip("clients on Flower: install fgrpo[flower]", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return WithoutFlower.from_parent(parent, path=module_path) if find_spec("flwr") is None else None
