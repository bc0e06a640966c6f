"""Loading a model: what of it may be random in training."""

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from fgrpo.client.model import load_model
from fgrpo.config import LoraConfig

SHAPE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2}
NOISY = {  # where the rates are read from
    "modules": ("GPT2", {**GPT, "resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}),
    "attribute": ("Llama", {**SHAPE, "attention_dropout": 0.2}),
    "configuration": ("Falcon", {**SHAPE, "attention_dropout": 0.2, "hidden_dropout": 0.2}),
    "layerdrop": ("OPT", {**SHAPE, "ffn_dim": 32, "word_embed_proj_dim": 32, "layerdrop": 0.5}),
    "router-jitter": ("Mixtral", {**SHAPE, "num_key_value_heads": 2, "router_jitter_noise": 0.3}),
}


@pytest.fixture
def config(policy, small_config, tmp_path, request):
    kind, options = NOISY[request.param]
    torch.manual_seed(0)
    settings = getattr(transformers, f"{kind}Config")(vocab_size=len(policy.tokenizer), **options)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    return replace(small_config, model=str(tmp_path))


def logits(model, training):
    with torch.no_grad():
        return model.train(training)(input_ids=torch.arange(3, 27).view(2, 12), use_cache=False).logits


@pytest.mark.parametrize("config", NOISY, indirect=True)
def test_training_computes_what_was_sampled_from(config):
    model, _ = load_model(config)
    assert torch.equal(logits(model, training=True), logits(model, training=False))


@pytest.mark.parametrize("config", NOISY, indirect=True)
def test_dropout_of_the_model_can_be_asked_for(config):
    model, _ = load_model(replace(config, train=replace(config.train, model_dropout=True)))
    assert not torch.equal(logits(model, training=True), logits(model, training=False))


@pytest.mark.parametrize("config", ["modules"], indirect=True)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_of_the_adapters_is_their_own(config, dropout):
    model, _ = load_model(replace(config, lora=LoraConfig(rank=4, dropout=dropout)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert torch.equal(logits(model, training=True), logits(model, training=False)) == (dropout == 0)
