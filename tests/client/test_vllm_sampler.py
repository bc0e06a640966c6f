"""The vLLM sampler against a stand-in of vLLM's interface: what it asks for, and what it makes of the answers."""

import sys
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.client.policy import Policy
from fgrpo.client.prompts import render
from fgrpo.config import LoraConfig
from fgrpo.errors import ConfigError

PROMPTS = ["1 + 1 =", "Calculate 12 - 3."]


class Engine:
    """Answers prompt p's completion g with g + 1 tokens 10 * p + g + 5, the last of them being token 2, the end."""

    made: "Engine"

    def __init__(self, **options):
        Engine.made = self
        self.options, self.weights, self.calls, self.adapters, self.resets = options, {}, [], [], 0

    def apply_model(self, function):
        return [function(SimpleNamespace(load_weights=self._load))]

    def _load(self, weights):
        self.weights = {name: weight.clone() for name, weight in weights}

    def reset_prefix_cache(self):
        self.resets += 1

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        self.calls.append((prompts, sampling_params))
        if lora_request is not None:
            weights = load_file(f"{lora_request.lora_path}/adapter_model.safetensors")
            self.adapters.append((lora_request.lora_int_id, weights))
        return [self._answer(p, parameters) for p, parameters in enumerate(sampling_params)]

    def _answer(self, p, parameters):
        drawn = []
        for g in range(parameters["n"]):
            tokens = [10 * p + g + 5] * g + [2]
            logprobs = [{token: SimpleNamespace(logprob=-0.5 * t - 0.25)} for t, token in enumerate(tokens)]
            drawn.append(SimpleNamespace(token_ids=tokens, logprobs=logprobs))
        return SimpleNamespace(outputs=drawn)


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@pytest.fixture
def config(small_config, monkeypatch):
    vllm, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams, request.LoRARequest = Engine, dict, LoRARequest
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return replace(small_config, rollout=replace(small_config.rollout, sampler="vllm", temperature=0.7))


def test_answers_become_rollouts(config):
    policy = Policy.load(config)
    rollouts = policy.sample(PROMPTS, config.rollout, seed=3)
    lengths = [1, 2, 3, 4] * 2
    assert rollouts.mask_BT.sum(1).tolist() == lengths
    completion_BT = rollouts.tokens_BL[:, rollouts.prompt_length :]
    assert completion_BT[6].tolist() == [17, 17, 2, policy.tokenizer.pad_token_id]
    assert rollouts.old_logp_BT[6].tolist() == [-0.25, -0.75, -1.25, 0.0]


def test_what_is_asked_for(config):
    policy = Policy.load(config)
    policy.sample(PROMPTS, config.rollout, seed=3)
    policy.sample(PROMPTS, config.rollout, seed=3, greedy=True)
    (prompts, drawing), (_, greedy) = Engine.made.calls
    texts = [render(policy.tokenizer, prompt, None) for prompt in PROMPTS]
    expected = policy.tokenizer(texts, add_special_tokens=policy.tokenizer.chat_template is None)["input_ids"]
    assert [prompt["prompt_token_ids"] for prompt in prompts] == expected, "no padding"
    assert drawing[0]["seed"] != drawing[1]["seed"]
    expected = {"n": 4, "temperature": 0.7, "max_tokens": 6, "stop_token_ids": [2], "logprobs": 0, "detokenize": False}
    assert {key: value for key, value in drawing[0].items() if key != "seed"} == expected
    assert (greedy[0]["n"], greedy[0]["temperature"]) == (1, 0.0)
    options = Engine.made.options
    assert (options["generation_config"], options["logprobs_mode"]) == ("vllm", "processed_logprobs")
    assert options["model"].endswith("tiny")
    assert "enable_lora" not in options


def test_every_call_has_the_models_weights_of_the_moment(config):
    policy = Policy.load(config)
    for step in range(2):
        with torch.no_grad():
            policy.model.model.norm.weight.fill_(step)
        policy.sample(PROMPTS, config.rollout, seed=0)
        weights = dict(policy.model.named_parameters())
        assert Engine.made.weights.keys() == weights.keys()
        assert all(torch.equal(Engine.made.weights[name], weight) for name, weight in weights.items())
    assert Engine.made.resets == 2


def test_every_call_has_the_adapter_of_the_moment(config):
    policy = Policy.load(replace(config, lora=LoraConfig(rank=12)))
    assert Engine.made.options["max_lora_rank"] == 16
    for step in range(2):
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(step + 1)
        policy.sample(PROMPTS, config.rollout, seed=0)
    (first, weights), (second, later) = Engine.made.adapters
    assert first != second
    assert all(bool((weight == 1).all()) for name, weight in weights.items() if "lora_B" in name)
    assert all(bool((weight == 2).all()) for name, weight in later.items() if "lora_B" in name)
    assert not Engine.made.weights


def test_without_vllm_one_line_says_so(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"^rollout\.sampler: vllm cannot be imported .*take transformers$"):
        Policy.load(config)
