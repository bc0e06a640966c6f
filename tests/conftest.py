"""For all tests: the same random numbers whatever ran before, short garbage collections, Ctrl-C, and a small run."""

import gc
import importlib.util
import random
import signal

import numpy as np
import pytest
import torch

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them the programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("hypothesis"):  # a machine that only runs the kernels may lack it
    from hypothesis import settings

    settings.register_profile("the same examples", derandomize=True, deadline=None)
    settings.load_profile("the same examples")


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


@pytest.fixture(scope="session")
def small_config():
    """A small configuration on the packaged model."""
    from fgrpo.config import ClientConfig, Config, EvaluationConfig, RolloutConfig, TaskConfig, TrainConfig

    digits = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    sums = TaskConfig(reasoning_gym="chain_sum", params=digits)
    gcd = TaskConfig(reasoning_gym="gcd", params={"min_value": 1, "max_value": 40})
    return Config(
        clients={"sums": ClientConfig([sums], reward_scale=0.1), "gcd": ClientConfig([gcd], reward_scale=10.0)},
        rollout=RolloutConfig(prompts_per_step=4, group_size=4, max_new_tokens=6),
        train=TrainConfig(local_steps=2, updates_per_rollout=2, minibatches=2, lr=1e-3),
        evaluation=EvaluationConfig(prompts=8),
        rounds=2,
    )


@pytest.fixture
def policy(small_config):
    from fgrpo.client.policy import Policy

    return Policy.load(small_config)
