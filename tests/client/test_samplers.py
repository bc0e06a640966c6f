"""The decoding loop: `generate`'s tokens where it is greedy, the model's own distribution where it draws."""

import copy

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from fgrpo.client.policy import Policy
from fgrpo.client.rollouts import completion_mask, sample
from fgrpo.client.samplers import transformers as loop
from fgrpo.client.samplers.base import Prompts, Request
from fgrpo.client.samplers.draw import draw, uniforms
from fgrpo.client.samplers.reading import CacheReader, RereadingReader, find_reader
from fgrpo.client.samplers.transformers import TransformersSampler
from fgrpo.config import RolloutConfig

V = 97
SHAPE = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SPREAD = {"initializer_range": 0.3}  # untrained models say nearly the same of every text otherwise
GROUPED = {"num_key_value_heads": 2}
WINDOW = {"sliding_window": 8}  # shorter than most prompts
CACHED = [
    pytest.param("Llama", {**SHAPE, **SPREAD, **GROUPED}, id="llama"),
    pytest.param("Qwen3", {**SHAPE, **SPREAD, **GROUPED, "head_dim": 8}, id="qwen3"),
    pytest.param("GPT2", {**GPT2, **SPREAD}, id="gpt2"),
    pytest.param("Gemma2", {**SHAPE, **SPREAD, **GROUPED, **WINDOW, "head_dim": 8}, id="gemma2-window"),
    pytest.param("Gemma3Text", {**SHAPE, **SPREAD, **GROUPED, **WINDOW, "head_dim": 8}, id="gemma3-window"),
    pytest.param("GPTNeoX", {**SHAPE, **SPREAD}, id="gpt-neox"),
    pytest.param("OPT", {**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}, id="opt"),
    pytest.param("Bloom", {**GPT2, **SPREAD, "hidden_size": 32}, id="bloom-alibi"),
    pytest.param("Mamba", {**SHAPE, **SPREAD, "state_size": 4}, id="mamba"),
]
HYBRID = {**SHAPE, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "num_key_value_heads": 1}
REREAD = [pytest.param("RecurrentGemma", HYBRID, id="recurrent-gemma")]
END_IDS = tuple(range(2, V, 4))  # so many that rows end here and there


def make_model(kind, options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**options, **IDS)).eval()


@pytest.fixture(scope="module")
def llama():
    return make_model(*CACHED[0].values)


def make_prompts():
    generator = torch.Generator().manual_seed(1)
    lengths_P1 = torch.tensor([[3], [14], [7], [20], [1], [9], [11], [5]])
    mask_PL = (torch.arange(20) >= 20 - lengths_P1).long()
    return Prompts(torch.randint(3, V, mask_PL.shape, generator=generator) * mask_PL, mask_PL)


def make_request(**changes):
    options = {"group_size": 4, "max_new_tokens": 12, "temperature": 0.8, "greedy": False, "seed": 0}
    return Request(**{**options, "end_ids": END_IDS, "pad_id": 0, **changes})


def model_logp(model, prompts, completions, temperature, end_ids=END_IDS):
    """The log-probabilities of completions from one pass over the whole texts, as in training."""
    tokens_BT, length = completions.tokens_BT, prompts.tokens_PL.shape[1]
    copies = len(tokens_BT) // len(prompts.tokens_PL)
    prompt_BL, prompt_mask_BL = (x.repeat_interleave(copies, 0) for x in (prompts.tokens_PL, prompts.mask_PL))
    mask_BT = completion_mask(tokens_BT, end_ids)
    attention_BL = torch.cat([prompt_mask_BL, mask_BT.long()], 1)
    inputs = {"input_ids": torch.cat([prompt_BL, tokens_BT], 1), "attention_mask": attention_BL, "use_cache": False}
    positions_BL = (attention_BL.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        try:
            logits_BLV = model(**inputs, position_ids=positions_BL).logits
        except TypeError:  # no positions
            logits_BLV = model(**inputs).logits
    logp_BTV = (logits_BLV[:, length - 1 : -1] / temperature).log_softmax(-1)
    return logp_BTV.gather(2, tokens_BT[..., None])[..., 0].masked_fill(~mask_BT, 0.0)


@pytest.mark.parametrize(("kind", "options"), CACHED + REREAD)
def test_greedy_tokens_are_those_of_generate(kind, options):
    model, prompts = make_model(kind, options), make_prompts()
    completions = TransformersSampler(model)(prompts, make_request(group_size=1, greedy=True))
    expected_BL = model.generate(
        input_ids=prompts.tokens_PL,
        attention_mask=prompts.mask_PL,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=list(END_IDS),
        pad_token_id=0,
    )
    assert torch.equal(completions.tokens_BT, expected_BL[:, prompts.tokens_PL.shape[1] :])
    lengths = completion_mask(completions.tokens_BT, END_IDS).sum(1)
    assert lengths.min() < lengths.max(), "rows left at different times"


@pytest.mark.parametrize(("kind", "options"), CACHED + REREAD)
def test_recorded_logprobs_are_the_models(kind, options):
    model, prompts = make_model(kind, options), make_prompts()
    completions = TransformersSampler(model)(prompts, make_request())
    expected_BT = model_logp(model, prompts, completions, temperature=0.8)
    torch.testing.assert_close(completions.logp_BT, expected_BT, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "options"), CACHED)
def test_a_right_cache_is_used_in_every_precision(kind, options, dtype):
    reader = find_reader(make_model(kind, options).to(dtype))()
    assert isinstance(reader, CacheReader)
    assert reader.picks


def test_large_logits_in_bfloat16_do_not_lose_the_cache(llama):
    """Their last bit is worth more than a nat here."""
    model = copy.deepcopy(llama).to(torch.bfloat16)
    model.lm_head.weight.data *= 30
    assert isinstance(find_reader(model)(), CacheReader)


def test_a_cache_that_cannot_pick_rows_keeps_the_whole_batch(llama, monkeypatch):
    expected = TransformersSampler(llama)(make_prompts(), make_request())
    monkeypatch.delattr("transformers.cache_utils.Cache.reorder_cache")
    sampler = TransformersSampler(llama)
    assert not sampler._make_reader().picks
    completions = sampler(make_prompts(), make_request())
    assert torch.equal(completions.tokens_BT, expected.tokens_BT)
    torch.testing.assert_close(completions.logp_BT, expected.logp_BT, atol=5e-5, rtol=1e-5)


def test_a_wrong_cache_is_found_out(llama, monkeypatch):
    """A model that counts its positions by the cache's length, padding included."""
    expected = TransformersSampler(llama)(make_prompts(), make_request())
    forward = llama.forward

    def counting(input_ids, attention_mask, position_ids, past_key_values=None, **options):
        if past_key_values is not None:
            position_ids = torch.full_like(position_ids, past_key_values.get_seq_length())
        return forward(input_ids, attention_mask, position_ids, past_key_values, **options)

    monkeypatch.setattr(llama, "forward", counting)
    sampler = TransformersSampler(llama)
    assert isinstance(sampler._make_reader(), RereadingReader)
    assert torch.equal(sampler(make_prompts(), make_request()).tokens_BT, expected.tokens_BT)


def test_prompts_are_read_once_and_ended_rows_leave(llama):
    rows = []

    def count(module, args, inputs):
        rows.append(len(inputs["input_ids"]))

    hook = llama.model.register_forward_pre_hook(count, with_kwargs=True)
    sampler = TransformersSampler(llama)
    rows.clear()
    completions = sampler(make_prompts(), make_request())
    hook.remove()
    lengths = completion_mask(completions.tokens_BT, END_IDS).sum(1)
    alive = [int((lengths > t).sum()) for t in range(1, len(rows))]
    assert rows[0] == 8
    assert rows[1] == 32 > rows[-1]
    assert all(n <= rows_read < n / (1 - loop._LEAVING) for n, rows_read in zip(alive, rows[1:], strict=True))


def test_asking_less_often_who_has_ended_changes_nothing(llama, monkeypatch):
    sampler = TransformersSampler(llama)
    often = sampler(make_prompts(), make_request())
    monkeypatch.setattr(loop, "_tokens_per_question", lambda device: 5)
    seldom = sampler(make_prompts(), make_request())
    length = often.tokens_BT.shape[1]
    assert torch.equal(often.tokens_BT, seldom.tokens_BT[:, :length])
    assert not seldom.tokens_BT[:, length:].any()
    torch.testing.assert_close(often.logp_BT, seldom.logp_BT[:, :length], atol=5e-5, rtol=1e-5)


def test_what_is_sampled_can_enter_training(llama):
    completions = TransformersSampler(llama)(make_prompts(), make_request())
    logp_BT = completions.logp_BT.clone().requires_grad_()
    (completions.logp_BT * logp_BT).sum().backward()
    assert torch.equal(logp_BT.grad, completions.logp_BT)


def chi_square(counts_V, probability_V):
    """Pearson's statistic over tokens expected at least five times, the others as one; and its degrees of freedom."""
    expected_V = probability_V.double() * counts_V.sum()
    common = expected_V >= 5
    counts, expected = (torch.cat([x[common], x[~common].sum()[None]]) for x in (counts_V.double(), expected_V))
    return ((counts - expected).square() / expected.clamp_min(1e-9)).sum().item(), int(common.sum())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_draws_follow_the_recorded_distribution(temperature):
    logits_V = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 1.5
    logits_V[[0, 7, 49]] = -torch.inf
    uniform_A = uniforms(0, 1, 40_000)[0]
    token_A, logp_A = draw(logits_V.expand(len(uniform_A), -1), temperature, uniform_A)
    logp_V = (logits_V / temperature).log_softmax(-1)
    assert torch.equal(logp_A, logp_V[token_A])
    statistic, freedom = chi_square(token_A.bincount(minlength=50), logp_V.exp())
    assert freedom > 15
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_a_token_of_probability_0_is_never_drawn():
    logits_AV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    token_A, _ = draw(logits_AV, 1.0, torch.tensor([1e-300, 0.5, 1.0], dtype=torch.float64))
    assert token_A.tolist() == [1, 1, 3]


def test_completions_follow_the_models_distribution(llama):
    """Second tokens too, which are drawn after rows have left."""
    prompts = Prompts(torch.tensor([[5, 9, 31]]), torch.ones(1, 3, dtype=torch.int64))
    completions = TransformersSampler(llama)(prompts, make_request(group_size=8000, max_new_tokens=2, temperature=1.0))
    first_B, second_B = completions.tokens_BT.unbind(1)
    with torch.no_grad():
        first_V = llama(input_ids=prompts.tokens_PL).logits[0, -1].softmax(-1)
        statistic, freedom = chi_square(first_B.bincount(minlength=V), first_V)
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5
        first_V[list(END_IDS)] = 0
        likeliest = int(first_V.argmax())
        text = torch.cat([prompts.tokens_PL, torch.tensor([[likeliest]])], 1)
        second_V = llama(input_ids=text).logits[0, -1].softmax(-1)
    statistic, freedom = chi_square(second_B[first_B == likeliest].bincount(minlength=V), second_V)
    assert freedom > 5
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


@pytest.fixture(scope="module")
def packaged(small_config):
    return Policy.load(small_config)


GENERATION_SETTINGS = [
    {"min_new_tokens": 6},
    {"min_length": 30},
    {"suppress_tokens": list(range(3, 60))},
    {"begin_suppress_tokens": list(range(3, 60))},
    {"bad_words_ids": [[5], [6]]},
    {"min_p": 0.5},
    {"top_k": 2},
    {"top_p": 0.3},
    {"typical_p": 0.3},
    {"epsilon_cutoff": 0.05},
    {"temperature": 0.1, "do_sample": True},
    {"num_beams": 4},
    {"num_return_sequences": 2},
    {"repetition_penalty": 3.0},
    {"no_repeat_ngram_size": 1},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": 2},
    {"sequence_bias": [[[5], 9.0]]},
    {"max_new_tokens": 1},
    {"max_length": 3},
    {"use_cache": False},
    {"cache_implementation": "static"},
]


@pytest.mark.parametrize("settings", GENERATION_SETTINGS, ids=lambda settings: next(iter(settings)))
def test_the_checkpoints_generation_settings_change_nothing(packaged, settings, monkeypatch):
    model, config = packaged.model, RolloutConfig(group_size=4, max_new_tokens=6)
    prompts = ["12 + 31 =", "Calculate 5 - 3."]
    expected = [packaged.sample(prompts, config, seed=0, greedy=greedy) for greedy in (False, True)]
    changed = copy.deepcopy(model.generation_config)
    for name, value in settings.items():
        setattr(changed, name, value)
    monkeypatch.setattr(model, "generation_config", changed)
    for greedy, before in zip((False, True), expected, strict=True):
        rollouts = sample(model, packaged.tokenizer, prompts, config, seed=0, greedy=greedy)
        assert torch.equal(rollouts.tokens_BL, before.tokens_BL)
        assert torch.equal(rollouts.old_logp_BT, before.old_logp_BT)


def test_end_tokens_do_come_from_there(packaged, monkeypatch):
    config, prompts = RolloutConfig(group_size=8, max_new_tokens=6), ["12 + 31 =", "Calculate 5 - 3."]
    first = sample(packaged.model, packaged.tokenizer, prompts, config, seed=0)
    first_B = first.tokens_BL[:, first.prompt_length]
    changed = copy.deepcopy(packaged.model.generation_config)
    changed.eos_token_id = [2, *first_B.tolist()]
    monkeypatch.setattr(packaged.model, "generation_config", changed)
    ended = sample(packaged.model, packaged.tokenizer, prompts, config, seed=0)
    assert torch.equal(ended.tokens_BL[:, -1], first_B), "every completion ends with its first token"
    assert ended.mask_BT.shape == (16, 1)
    torch.testing.assert_close(ended.old_logp_BT, first.old_logp_BT[:, :1])


@pytest.mark.parametrize("pad_id", [0, 2], ids=["pad", "pad-is-end"])
@pytest.mark.parametrize("end_ids", [(), (2,), END_IDS], ids=["no-end", "one-end", "many-ends"])
def test_end_and_padding_tokens(llama, pad_id, end_ids):
    prompts = make_prompts()
    completions = TransformersSampler(llama)(prompts, make_request(end_ids=end_ids, pad_id=pad_id))
    mask_BT = completion_mask(completions.tokens_BT, end_ids)
    assert (completions.tokens_BT[~mask_BT] == pad_id).all()
    assert (completions.logp_BT[~mask_BT] == 0).all()
    assert (completions.logp_BT[mask_BT] < 0).all()
    expected_BT = model_logp(llama, prompts, completions, 0.8, end_ids)
    torch.testing.assert_close(completions.logp_BT, expected_BT, atol=5e-5, rtol=1e-5)
