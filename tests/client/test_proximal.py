"""FedProx against what it is by hand: the pull of the global weights, before clipping, inside Adam's moments."""

from dataclasses import replace

import pytest
import torch

from fgrpo.client.local_training import backward, minibatches, train_locally
from fgrpo.client.masters import Masters
from fgrpo.client.owners import make_clients
from fgrpo.client.policy import Policy
from fgrpo.client.proximal import add_proximal
from fgrpo.client.rollout_batches import roll_out
from fgrpo.client.tally import Tally
from fgrpo.config import LoraConfig
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import flatten, load_flat

MU, LR, DECAY, MAX_NORM = 1.0, 1e-3, 0.1, 0.5


def test_the_pull_is_the_gradient_of_the_penalty():
    start = [torch.randn(6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    parameters = [torch.randn(2, 3, dtype=torch.float64).requires_grad_(), torch.randn(4, dtype=torch.float64)]
    parameters[1].requires_grad_()
    parameters[0].grad = torch.ones(2, 3, dtype=torch.float64)  # the other has none of its own
    penalty = MU / 2 * sum((p.flatten() - s).square().sum() for p, s in zip(parameters, start, strict=True))
    expected = torch.autograd.grad(penalty, parameters)
    add_proximal(parameters, start, MU)
    torch.testing.assert_close(parameters[0].grad, 1 + expected[0])
    torch.testing.assert_close(parameters[1].grad, expected[1])
    add_proximal(parameters, start, 0.0)
    torch.testing.assert_close(parameters[0].grad, 1 + expected[0])


def by_hand(policy, config, start_P):
    """AdamW written out on one flat vector: gradient + pull, clip, moments, decay beside them."""
    client, w_P = make_clients(config)[0], start_P.double()
    m_P, v_P, steps = torch.zeros_like(w_P), torch.zeros_like(w_P), 0
    for batch in range(config.train.local_steps):
        load_flat(policy.model, w_P.float())
        policy.model.eval()
        drawn = roll_out(policy, client, config, batch, Stopwatch(), Tally())
        for batches in minibatches(policy, *drawn, config) * config.train.updates_per_rollout:
            load_flat(policy.model, w_P.float())
            policy.model.zero_grad()
            backward(policy, batches, config)
            g_P = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]).double()
            g_P += MU * (w_P - start_P)
            g_P *= min(1.0, MAX_NORM / (g_P.norm().item() + 1e-6))
            steps += 1
            m_P, v_P = 0.9 * m_P + 0.1 * g_P, 0.999 * v_P + 0.001 * g_P.square()
            w_P = w_P * (1 - LR * DECAY)
            w_P -= LR * (m_P / (1 - 0.9**steps)) / ((v_P / (1 - 0.999**steps)).sqrt() + 1e-8)
    return w_P.float()


@pytest.mark.parametrize(
    ("options", "steps", "tolerance"),
    [
        pytest.param({}, 2, 1e-3, id="all-parameters"),
        pytest.param({"lora": LoraConfig(rank=4)}, 2, 1e-3, id="lora"),
        # A master between two bfloat16 numbers goes to either for a last bit, and then gradients are others.
        pytest.param({"dtype": "bfloat16"}, 1, 2e-2, id="masters"),
    ],
)
def test_a_round_is_what_it_is_by_hand(small_config, options, steps, tolerance):
    change = {"local_steps": steps, "minibatches": steps, "proximal": MU}
    train = replace(small_config.train, lr=LR, weight_decay=DECAY, max_grad_norm=MAX_NORM, **change)
    config = replace(small_config, train=train, **options)
    policy = Policy.load(config)
    start_P = flatten(policy.model)
    masters = Masters(policy.model, start_P)
    train_locally(policy, masters, make_clients(config)[0], config, 1, Stopwatch())
    moved_P = masters.flatten() - start_P
    expected_P = by_hand(policy, config, start_P) - start_P
    assert (moved_P - expected_P).norm() <= tolerance * expected_P.norm()
    load_flat(policy.model, start_P)
    free = Masters(policy.model, start_P)
    plain = replace(config, train=replace(train, proximal=0.0))
    train_locally(policy, free, make_clients(plain)[0], plain, 1, Stopwatch())
    assert (free.flatten() - start_P - expected_P).norm() > expected_P.norm(), "the pull is felt"
