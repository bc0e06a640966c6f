"""A 4-bit frozen base under LoRA: what is in four bits, what is not, and that a run trains, saves and resumes."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from peft.tuners import lora
from safetensors.torch import load_file
from torch import nn

from fgrpo.checks import check
from fgrpo.client import quantization
from fgrpo.client.local_training import backward, minibatches
from fgrpo.client.policy import Policy
from fgrpo.config import EngineConfig, EvaluationConfig, LoraConfig
from fgrpo.errors import ConfigError
from fgrpo.experiment import resume, train


@pytest.fixture
def config(small_config):
    return replace(small_config, engine=EngineConfig(workers=0), quantization="nf4", lora=LoraConfig(rank=4))


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'fgrpo[quantize]'")


def test_all_linear_layers_but_the_head_are_in_four_bits(bitsandbytes, config):
    policy = Policy.load(config)
    base = policy.model.get_base_model()
    kinds = {name: type(module) for name, module in base.named_modules() if hasattr(module, "in_features")}
    adapted = [name for name in kinds if name.endswith(".base_layer")]
    assert len(adapted) == 7 * len(base.model.layers)
    assert {kinds[name] for name in adapted} == {bitsandbytes.nn.Linear4bit}
    assert kinds["lm_head"] is nn.Linear
    assert policy.plain_head
    assert policy.shares_prefixes
    trained = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name for name in trained)


def dequantized(policy, bitsandbytes):
    """The policy with ordinary linear layers of the same weights."""
    for layer in [module for module in policy.model.modules() if isinstance(module, lora.Linear4bit)]:
        weight_OI = layer.base_layer.weight
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = nn.Parameter(bitsandbytes.functional.dequantize_4bit(weight_OI, weight_OI.quant_state), False)
        layer.base_layer = plain
    return policy


def test_gradients_are_those_of_the_same_weights_unquantised(bitsandbytes, config):
    """After a rollout too, which is when bitsandbytes may change how a layer computes."""
    config = replace(config, train=replace(config.train, minibatches=1))
    gradients = []
    for policy in (Policy.load(config), dequantized(Policy.load(config), bitsandbytes)):
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(parameter, 0.01)
        rollouts = policy.sample(["12 + 31 =", "5 + 5 ="], config.rollout, seed=0)
        (batches,) = minibatches(policy, rollouts, torch.linspace(-1.0, 1.0, 8), config)
        metrics = backward(policy, batches, config)
        assert metrics["ratio/min"] == pytest.approx(1, abs=1e-4)
        assert metrics["ratio/max"] == pytest.approx(1, abs=1e-4)
        gradients.append([p.grad for p in policy.model.parameters() if p.requires_grad])
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_a_run_saves_its_adapter_and_resumes_to_the_same_bits(bitsandbytes, config, tmp_path):
    class Observer:
        def stage(self, who, stage):
            pass

        def record(self, record):
            pass

    def observed(*_):
        return nullcontext(Observer())

    config = replace(config, train=replace(config.train, local_steps=1), evaluation=EvaluationConfig(prompts=4))
    whole = train(replace(config, output_dir=str(tmp_path / "whole")), observed)
    train(replace(config, output_dir=str(tmp_path / "parts"), rounds=1), observed)
    parts = resume(tmp_path / "parts", ["--rounds", "2"], observed)
    assert torch.equal(whole.load().params_P, parts.load().params_P)
    saved = load_file(whole.path / "model" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == len(whole.load().params_P)
    assert all(tensor.any() for tensor in saved.values()), "an adapter's second matrix starts at 0"
    with pytest.raises(ConfigError, match=r"quantization of the run .* cannot be changed"):
        resume(tmp_path / "parts", ["--quantization", "null"], observed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"lora": None}, "set lora", id="without-lora"),
        pytest.param({"gguf_file": "model.gguf"}, "gguf_file", id="gguf"),
    ],
)
def test_what_it_does_not_go_with(config, change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check(replace(config, **change))
    assert "\n" not in str(caught.value)


def test_without_bitsandbytes_the_way_to_it_is_told(config, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'bitsandbytes>=[0-9.]+'"):
        quantization.quantized_loading("nf4", torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"pip install 'bitsandbytes>=[0-9.]+'"):
        Policy.load(config)
