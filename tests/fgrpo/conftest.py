"""A small configuration on the packaged model, shared by the tests of the loop."""

import pytest
import torch

from fgrpo.config import ClientConfig, Config, EvaluationConfig, RolloutConfig, TaskConfig, TrainConfig
from fgrpo.policy import Policy

SUMS = TaskConfig(reasoning_gym="chain_sum", params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
GCD = TaskConfig(reasoning_gym="gcd", params={"min_value": 1, "max_value": 40})


@pytest.fixture(scope="session")
def small_config():
    return Config(
        clients={"sums": ClientConfig([SUMS], reward_scale=0.1), "gcd": ClientConfig([GCD], reward_scale=10.0)},
        rollout=RolloutConfig(prompts_per_step=4, group_size=4, max_new_tokens=6),
        train=TrainConfig(local_steps=2, updates_per_rollout=2, minibatches=2, lr=1e-3),
        evaluation=EvaluationConfig(prompts=8),
        rounds=2,
    )


@pytest.fixture
def policy(small_config):
    torch.manual_seed(0)
    return Policy.load(small_config)
