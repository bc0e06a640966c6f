"""For all tests: the same random numbers whatever ran before, and short garbage collections."""

import gc
import random

import numpy as np
import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What is imported by now stays; Transformers' Trainer asks for a collection that walks through it at each run."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
