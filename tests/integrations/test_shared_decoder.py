"""Shared prompts through real architectures: the hidden states and gradients of each sequence on its own."""

from contextlib import nullcontext

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)

from fgrpo_kernels.models import shared_attention
from fgrpo_kernels.models.shared_attention import disable_shared_attention, enable_shared_attention
from fgrpo_kernels.models.shared_decoder import can_share_prompts, decoder_inputs, rounding_anew
from fgrpo_kernels.shared_prompts import share_prompts

V = 97
SMALL = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
WINDOW = {**LLAMA, "head_dim": 8, "sliding_window": 5}
SHARING = {
    "llama": LlamaConfig(**LLAMA),
    "qwen3": Qwen3Config(**LLAMA, head_dim=8),
    "gpt2": GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=48),
    "opt": OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32),
    "mistral, windows": MistralConfig(**WINDOW),
    "gemma2, windows": Gemma2Config(**WINDOW),
    "gemma3, windows": Gemma3TextConfig(**WINDOW | {"num_hidden_layers": 6}),
}
APART = {
    "bloom, ALiBi": BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4),
    "falcon, ALiBi": FalconConfig(**SMALL, alibi=True),
    "mamba, recurrent": MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2),
    "llama4, chunks": Llama4TextConfig(**LLAMA, head_dim=8, num_local_experts=2, intermediate_size_mlp=48),
}


def model_of(config, attention=None):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def hidden_states(model, inputs):
    return model.get_decoder()(**inputs).last_hidden_state


def groups():
    """Three groups of four, of prompts with 3 to 12 tokens and completions that begin alike or not."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n, high=V: torch.randint(1, high, (n,), generator=generator).tolist()  # noqa: E731
    prompts = [prompt for prompt in map(draw, (12, 3, 9)) for _ in range(4)]
    return prompts, [draw(1 + b % 9, 4) for b in range(12)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SHARING)
def test_hidden_states_and_gradients(name, attention):
    try:
        model = model_of(SHARING[name], attention)
    except ValueError:
        model = model_of(SHARING[name])  # the architecture has no such attention
    assert can_share_prompts(model, lambda inputs: hidden_states(model, inputs))
    results = []
    for share in (True, False):
        (batch,) = share_prompts(*groups(), share=share)
        rows_NH = batch.rows(hidden_states(model, decoder_inputs(batch, model)))
        model.zero_grad()
        (rows_NH * torch.linspace(-1, 1, rows_NH.numel()).view_as(rows_NH)).sum().backward()
        results.append((rows_NH.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        results[-1] += (batch.input_ids.numel(),)
    (rows, gradients, tokens), (expected, expected_gradients, expected_tokens) = results
    assert tokens < 0.6 * expected_tokens
    torch.testing.assert_close(rows, expected, atol=2e-6, rtol=2e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5 * max(scale, 1e-3), rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "mistral, windows", "gemma3, windows"])
def test_attention_without_a_mask(name, monkeypatch):
    """In blocks of three queries: the hidden states and gradients that a mask gives."""
    monkeypatch.setattr(shared_attention, "MIN_LENGTH", 1)
    monkeypatch.setattr(shared_attention, "QUERIES", 3)
    model = model_of(SHARING[name], "sdpa")
    (batch,) = share_prompts(*groups())
    results = []
    for enabled in (False, True):
        if enabled:
            enable_shared_attention(model)
        inputs = decoder_inputs(batch, model)
        masks = inputs["attention_mask"]
        masks = list(masks.values()) if isinstance(masks, dict) else [masks]
        assert all((mask.dtype == torch.int64) == enabled for mask in masks)
        rows_NH = batch.rows(hidden_states(model, inputs))
        model.zero_grad()
        (rows_NH * torch.linspace(-1, 1, rows_NH.numel()).view_as(rows_NH)).sum().backward()
        results.append((rows_NH.detach(), model.get_input_embeddings().weight.grad))
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


def test_elsewhere_it_is_transformers_attention():
    """Padded rows, generation, and after it is switched off: the same bits."""
    model, plain = model_of(SHARING["llama"], "sdpa"), model_of(SHARING["llama"], "sdpa")
    enable_shared_attention(model)
    tokens = torch.arange(1, 17).view(2, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    for inputs in ({"input_ids": tokens}, {"input_ids": tokens, "attention_mask": mask}):
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))
    disable_shared_attention(model)
    assert model.config._attn_implementation == "sdpa"
    eager = model_of(SHARING["llama"], "eager")
    enable_shared_attention(eager)
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", APART)
def test_models_that_cannot_are_found(name):
    model = model_of(APART[name])
    assert not can_share_prompts(model, lambda inputs: hidden_states(model, inputs))


@pytest.mark.parametrize("name", SHARING)
def test_apart_is_what_the_model_computes_of_one_sequence(name):
    model = model_of(SHARING[name])
    prompts, completions = groups()
    (batch,) = share_prompts(prompts, completions, share=False)
    with torch.no_grad():
        rows_NH = batch.rows(hidden_states(model, decoder_inputs(batch, model)))
        for b in (0, 7, 11):
            alone = hidden_states(model, {"input_ids": torch.tensor([prompts[b] + completions[b]]), "use_cache": False})
            expected = alone[0, len(prompts[b]) - 1 : -1]
            torch.testing.assert_close(rows_NH[batch.sequences == b], expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_and_autocast():
    model = model_of(SHARING["llama"])
    (batch,) = share_prompts(*groups())
    with torch.autocast("cpu", torch.bfloat16):
        assert hidden_states(model, decoder_inputs(batch, model)).isfinite().all()
    half = model.bfloat16()
    assert can_share_prompts(half, lambda inputs: hidden_states(half, inputs))


@pytest.mark.parametrize(("name", "steepness"), [("gpt2", 1), ("gemma2, windows", 4), ("llama", 16)])
def test_last_bits_do_not_decide_in_16_bits(name, steepness):
    """Shared rows rounded in their own way are the same states; under a mask that shows all that came before, not."""
    model = model_of(SHARING[name]).bfloat16()
    for parameter in model.parameters():
        parameter.data *= steepness if parameter.ndim == 2 else 1
    calls = []

    def rounded(inputs):
        calls.append(inputs)
        with rounding_anew(model) if len(calls) == 1 else nullcontext():
            return hidden_states(model, inputs)

    def seeing_all(inputs):
        length = inputs["input_ids"].shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril().expand(len(inputs["input_ids"]), 1, -1, -1)
        blocked = torch.zeros(causal.shape, dtype=model.dtype).masked_fill(~causal, torch.finfo(model.dtype).min)
        is_shared = len(inputs["input_ids"]) == 2
        mask = inputs["attention_mask"]
        masks = dict.fromkeys(mask, blocked) if isinstance(mask, dict) else blocked
        return hidden_states(model, inputs | ({"attention_mask": masks} if is_shared else {}))

    assert can_share_prompts(model, rounded)
    assert not can_share_prompts(model, seeing_all)


def test_flex_attention_takes_a_block_mask():
    model = model_of(SHARING["llama"], "flex_attention").requires_grad_(False)  # no backward pass on a CPU
    (batch,) = share_prompts(*groups())
    assert type(decoder_inputs(batch, model)["attention_mask"]).__name__ == "BlockMask"
    expected = model_of(SHARING["llama"])
    with torch.no_grad():
        found = batch.rows(hidden_states(model, decoder_inputs(batch, model)))
        rows = batch.rows(hidden_states(expected, decoder_inputs(batch, expected)))
    torch.testing.assert_close(found, rows, atol=1e-5, rtol=1e-4)
