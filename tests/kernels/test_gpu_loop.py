"""The federated loop's training on a device: how often the host waits for it."""

import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


@pytest.fixture(scope="module")
def policy():
    from fgrpo.client.policy import Policy
    from fgrpo.config import LoraConfig

    policy = Policy.load(replace(configuration(), lora=LoraConfig(rank=2)))
    waits(policy, configuration())  # once what is compiled and set up at a first use
    return policy


def configuration(steps=1, tokens=3, **train):
    from fgrpo.config import ClientConfig, Config, RolloutConfig, TaskConfig, TrainConfig

    sums = TaskConfig(reasoning_gym="chain_sum", params={"min_terms": 2, "max_terms": 2})
    return Config(
        device="cuda",
        clients={name: ClientConfig([sums]) for name in ("one", "other")},
        rollout=RolloutConfig(prompts_per_step=4, group_size=2, max_new_tokens=tokens),
        train=TrainConfig(local_steps=steps, entropy_coef=0.01, **train),  # so every sequence has signal
    )


def test_a_loaded_model_is_the_cpus(policy):
    """Its buffers too, some of which are in no file."""
    from fgrpo.client.policy import Policy

    here = Policy.load(replace(configuration(), device="cpu")).model
    there = policy.model.get_base_model()
    buffers = {name: x.cpu() for name, x in there.named_buffers()}
    assert buffers.keys() == dict(here.named_buffers()).keys()
    assert all(torch.equal(buffers[name], x) for name, x in here.named_buffers())


def waits(policy, config, together=False):
    """How often local training waits for the device, of one client or of both at once; by what it says."""
    from fgrpo.client.local_training import train_locally
    from fgrpo.client.masters import Masters
    from fgrpo.client.owners import make_clients
    from fgrpo.client.stacked_lora import stacked
    from fgrpo.client.stacked_training import train_together
    from fgrpo.stopwatch import Stopwatch
    from fgrpo.wire.parameters import flatten

    start_P, clients = flatten(policy.model), make_clients(config)
    with stacked(policy.model, len(clients)) if together else warnings.catch_warnings() as stack:
        if together:
            stack.load(start_P)
            train, of = train_together, (policy, stack, clients, config, 1, [Stopwatch() for _ in clients])
        else:
            train, of = train_locally, (policy, Masters(policy.model, start_P), clients[0], config, 1, Stopwatch())
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train(*of)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(str(warning.message) for warning in caught if "synchronizing" in str(warning.message))


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        pytest.param({}, {}, id="shared prompts"),
        pytest.param({"shares_prefixes": False}, {"level": "sequence", "proximal": 0.1}, id="a row each"),
        pytest.param({"plain_head": False}, {"beta": 0.1}, id="logits, with a reference"),
    ],
)
def test_a_minibatch_does_not_wait(policy, changes, options):
    policy = replace(policy, **changes)
    one, four = (waits(policy, configuration(minibatches=n, **options)) for n in (1, 4))
    assert four == one


def test_a_minibatch_of_several_clients_does_not_wait(policy):
    one, four = (waits(policy, configuration(minibatches=n), together=True) for n in (1, 4))
    assert four == one


def test_a_step_waits_once(policy):
    """For its rollouts; a client's round once more, for its report."""
    one, two = (waits(policy, configuration(steps=n)) for n in (1, 2))
    assert (one.total(), two.total()) == (2, 3), (one, two)


def test_tokens_do_not_wait_but_every_eighth(policy):
    """Which asks who has ended."""
    few, many = (waits(policy, configuration(tokens=n)) for n in (2, 9))
    assert many.total() - few.total() == 1, (few, many)


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
