"""LoRA with frozen first matrices: half of it is sent, and the mean of clients' updates is exact."""

from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from fgrpo.client.owners import Owners, make_clients
from fgrpo.client.policy import Policy
from fgrpo.client.round import client_round
from fgrpo.config import LoraConfig
from fgrpo.engines.workplace import Workplace
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import Manifest, flatten, load_flat
from fgrpo.wire.payload import unpack
from fgrpo_kernels.codec import decode


def adapted(small_config, train):
    codec = replace(small_config.codec, codec="none", error_feedback=False)
    lora = LoraConfig(rank=4, target_modules=["q_proj", "o_proj"], train=train)
    return replace(small_config, lora=lora, codec=codec, train=replace(small_config.train, lr=1e-2))


def updates(policy, params_P):
    """The products B A of all layers at these parameters, in one vector."""
    load_flat(policy.model, params_P)
    layers = [module for module in policy.model.modules() if isinstance(module, LoraLayer)]
    return torch.cat([layer.get_delta_weight("default").detach().double().flatten() for layer in layers])


def test_only_b_is_trained_and_sent(small_config):
    both, b = (Policy.load(adapted(small_config, train)) for train in ("both", "b"))
    names = Manifest.of(b.model).names
    assert names == tuple(name for name in Manifest.of(both.model).names if "lora_B" in name)
    assert Manifest.of(b.model).size == Manifest.of(both.model).size // 2
    first = dict(both.model.named_parameters())
    assert all(torch.equal(p, first[name]) for name, p in b.model.named_parameters()), "A is that of the seed"


@pytest.mark.parametrize("train", ["both", "b"])
def test_the_mean_of_products_is_the_product_of_means(small_config, train):
    config = adapted(small_config, train)
    policy, clients = Policy.load(config), make_clients(config)
    start_P = flatten(policy.model)
    frozen = {name: p.clone() for name, p in policy.model.named_parameters() if not p.requires_grad}
    ends = []
    for client in clients:
        reply = client_round(client, policy, start_P, None, 1, config, Stopwatch())
        ends.append(start_P + decode(unpack(reply.payload)[1]))
    weights = (0.3, 0.7)
    of_products = sum(w * updates(policy, end_P) for w, end_P in zip(weights, ends, strict=True))
    of_means = updates(policy, sum(w * end_P for w, end_P in zip(weights, ends, strict=True)))
    error = ((of_means - of_products).norm() / of_products.norm()).item()
    assert of_products.norm() > 0
    assert error < 1e-6 if train == "b" else error > 1e-3
    assert all(torch.equal(p, frozen[name]) for name, p in policy.model.named_parameters() if name in frozen)


def test_the_saved_adapter_is_whole(small_config, tmp_path):
    config = adapted(small_config, "b")
    place = Workplace(config, Owners(config), Policy.load(config))
    params_P = torch.randn(Manifest.of(place.policy.model).size)
    place.save(params_P, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    sides = [sum(f"lora_{side}" in name for name in saved) for side in "AB"]
    assert sides[0] == sides[1] > 0
    for name, parameter in place.policy.model.named_parameters():
        if "lora_" in name:
            assert torch.equal(saved[name.replace(".default", "")], parameter)
