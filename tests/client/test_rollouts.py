"""Sampled completions: masks, padding, and the recorded probabilities."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel

from fgrpo.client.rollouts import completion_mask, encode, sample
from fgrpo.config import RolloutConfig
from fgrpo.errors import TaskError

PROMPTS = [
    "State the final answer to the following arithmetic problem: 4 + 3 =",
    "Find the Greatest Common Divisor (GCD) of these numbers: 12, 18. Give only the GCD as your final answer.",
    "Calculate 5 - 3.",
]
CONFIG = RolloutConfig(group_size=4, max_new_tokens=6, temperature=0.8)


def sampled(policy, **changes):
    return sample(policy.model, policy.tokenizer, PROMPTS, replace(CONFIG, **changes), seed=7)


def completion_logits(model, rollouts):
    """[B, T, V], of the rollouts as they are, with positions that count real tokens."""
    positions_BL = (rollouts.attention_BL.cumsum(dim=1) - 1).clamp_min(0)
    inputs = {"input_ids": rollouts.tokens_BL, "attention_mask": rollouts.attention_BL, "position_ids": positions_BL}
    return model(**inputs).logits[:, rollouts.prompt_length - 1 : -1]


def model_logp(model, rollouts, temperature):
    logits_BTV = completion_logits(model, rollouts).float() / temperature
    targets_BT = rollouts.tokens_BL[:, rollouts.prompt_length :]
    return logits_BTV.log_softmax(-1).gather(2, targets_BT[..., None])[..., 0].masked_fill(~rollouts.mask_BT, 0.0)


@pytest.mark.parametrize("temperature", [0.8, 1.0, 1.7])
def test_recorded_logprobs_are_the_models(policy, temperature):
    rollouts = sampled(policy, temperature=temperature)
    with torch.no_grad():
        expected = model_logp(policy.model, rollouts, temperature)
    torch.testing.assert_close(rollouts.old_logp_BT, expected, atol=2e-5, rtol=1e-4)
    assert (rollouts.old_logp_BT[rollouts.mask_BT] < 0).any()


def test_recorded_logprobs_with_absolute_positions(policy):
    """Left padding must not shift the positions of models that learned absolute ones."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=len(policy.tokenizer), eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    rollouts = sample(model, policy.tokenizer, PROMPTS, CONFIG, seed=3)
    with torch.no_grad():
        expected = model_logp(model, rollouts, CONFIG.temperature)
    torch.testing.assert_close(rollouts.old_logp_BT, expected, atol=2e-5, rtol=1e-4)


def test_shapes_padding_and_groups(policy):
    rollouts = sampled(policy)
    assert rollouts.tokens_BL.shape[0] == len(rollouts.completions) == 12
    assert rollouts.mask_BT.shape == rollouts.old_logp_BT.shape
    prompt_mask = rollouts.attention_BL[:, : rollouts.prompt_length]
    assert (prompt_mask[:, -1] == 1).all(), "padding is on the left"
    assert (prompt_mask.diff(dim=1) >= 0).all()
    assert torch.equal(rollouts.attention_BL[:, rollouts.prompt_length :].bool(), rollouts.mask_BT)
    prompts = rollouts.tokens_BL[:, : rollouts.prompt_length].view(3, 4, -1)
    assert (prompts == prompts[:, :1]).all(), "completions of one prompt are neighbours"


def test_the_seed_decides_and_the_global_state_is_left_alone(policy):
    before = torch.random.get_rng_state()
    one, two = sampled(policy), sampled(policy)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.tokens_BL, two.tokens_BL)
    other = sample(policy.model, policy.tokenizer, PROMPTS, CONFIG, seed=8)
    assert one.completions != other.completions


def test_greedy_gives_one_completion_each(policy):
    rollouts = sample(policy.model, policy.tokenizer, PROMPTS, CONFIG, seed=0, greedy=True)
    assert len(rollouts.completions) == 3
    with torch.no_grad():
        logits_BTV = completion_logits(policy.model, rollouts)
    chosen = rollouts.tokens_BL[:, rollouts.prompt_length :]
    assert (logits_BTV.argmax(-1) == chosen)[rollouts.mask_BT].all()


def test_completion_mask_keeps_the_first_end_token():
    tokens = torch.tensor([[5, 2, 0, 0], [5, 6, 7, 8], [2, 2, 2, 2], [5, 3, 2, 9]])
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    assert torch.equal(completion_mask(tokens, [2, 3]), expected)


def test_texts_end_where_the_mask_ends(policy):
    rollouts = sampled(policy)
    completion_BT = rollouts.tokens_BL[:, rollouts.prompt_length :]
    for tokens, mask, text in zip(completion_BT, rollouts.mask_BT, rollouts.completions, strict=True):
        assert policy.tokenizer.decode(tokens[mask], skip_special_tokens=True) == text


@pytest.mark.parametrize("template", ["<s> $A </s>", "$A </s>", "<s> $A", "$A </s> </s>"])
def test_what_a_tokenizer_appends_to_prompts_is_left_out(policy, template):
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.chat_template = None
    specials = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    bare = tokenizer(PROMPTS, add_special_tokens=False)["input_ids"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=specials)
    assert ("</s>" in template) == (tokenizer(PROMPTS[0])["input_ids"][-1] == specials[1][1])
    encoded = encode(tokenizer, PROMPTS)
    before = [specials[0][1]] if "<s>" in template.split() else []
    for tokens, mask, expected in zip(encoded.tokens_PL, encoded.mask_PL, bare, strict=True):
        assert tokens[mask.bool()].tolist() == before + expected
        assert mask[-1] == 1


def test_a_prompt_without_tokens_is_refused_in_one_line(policy):
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(TaskError, match="a prompt has no tokens: ''"):
        sample(policy.model, tokenizer, ["1 + 1 =", ""], CONFIG, seed=0)
