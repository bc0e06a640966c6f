"""Server optimisers against torch's own, where torch has them."""

import pytest
import torch

from fgrpo.config import ServerConfig
from fgrpo.server.step import server_step

DELTAS = [torch.randn(5, generator=torch.Generator().manual_seed(i)) for i in range(4)]


def run(config):
    params, state = torch.zeros(5), {}
    for delta in DELTAS:
        before = params.clone()
        new, state = server_step(params, delta, state, config)
        assert torch.equal(params, before), "the old parameters are left as they were"
        params = new
    return params


@pytest.mark.parametrize(
    ("config", "torch_options"),
    [
        pytest.param(ServerConfig(lr=0.7), {"lr": 0.7}, id="plain"),
        pytest.param(
            ServerConfig("momentum", lr=0.7, momentum=0.9),
            {"lr": 0.7, "momentum": 0.9, "nesterov": True},
            id="momentum",
        ),
    ],
)
def test_is_sgd_on_the_negative_delta(config, torch_options):
    parameter = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], **torch_options)
    for delta in DELTAS:
        parameter.grad = -delta
        optimizer.step()
    torch.testing.assert_close(run(config), parameter.detach())


def test_adam_is_fedadam():
    first, second, params = torch.zeros(5), torch.zeros(5), torch.zeros(5)
    for delta in DELTAS:
        first = 0.9 * first + 0.1 * delta
        second = 0.99 * second + 0.01 * delta**2
        params = params + 0.02 * first / (second**0.5 + 1e-3)
    torch.testing.assert_close(run(ServerConfig("adam", lr=0.02, momentum=0.9, beta2=0.99, eps=1e-3)), params)
