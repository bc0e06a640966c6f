"""The federated loop's training on a device: how often the host waits for it."""

import warnings

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


@pytest.fixture(scope="module")
def policy():
    from fgrpo.client.policy import Policy

    return Policy.load(configuration())


def configuration(**train):
    from fgrpo.config import ClientConfig, Config, RolloutConfig, TaskConfig, TrainConfig

    sums = TaskConfig(reasoning_gym="chain_sum", params={"min_terms": 2, "max_terms": 2})
    return Config(
        device="cuda",
        clients={"sums": ClientConfig([sums])},
        rollout=RolloutConfig(prompts_per_step=4, group_size=2, max_new_tokens=3),
        train=TrainConfig(local_steps=1, entropy_coef=0.01, **train),  # so every sequence has signal
    )


def waits(policy, config):
    """How often a client's local training waits for the device."""
    from fgrpo.client.local_training import train_locally
    from fgrpo.client.masters import Masters
    from fgrpo.client.owners import make_clients
    from fgrpo.stopwatch import Stopwatch
    from fgrpo.wire.parameters import flatten

    masters, (client,) = Masters(policy.model, flatten(policy.model)), make_clients(config)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_locally(policy, masters, client, config, 1, Stopwatch())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]


def test_a_minibatch_waits_twice_at_most(policy):
    """Once for the head, which has to know how many rows count."""
    one, four = (waits(policy, configuration(minibatches=n)) for n in (1, 4))
    assert len(four) - len(one) <= 2 * 3, (one, four)


def test_a_round_that_encodes_on_the_device(policy):
    from fgrpo.client.owners import make_clients
    from fgrpo.client.round import client_round
    from fgrpo.stopwatch import Stopwatch
    from fgrpo.wire.parameters import flatten
    from fgrpo.wire.payload import unpack
    from fgrpo_kernels import codec

    config, start_P = configuration(), flatten(policy.model)
    residual_P = torch.zeros_like(start_P)
    reply = client_round(make_clients(config)[0], policy, start_P, residual_P, 1, config, Stopwatch())
    _, encoded = unpack(reply.payload)
    moved_P = flatten(policy.model) - start_P
    torch.testing.assert_close(codec.decode(encoded) + residual_P, moved_P, rtol=1e-6, atol=1e-9)
    assert moved_P.count_nonzero() > 0
