"""The TRL plug-in's fused head on every kind of head that models have, its memory, and what it refuses.

B sequences   T completion tokens   V vocabulary   H hidden size
"""

import types

import pytest
import torch
import transformers
from needs_trl import trl
from peft import LoraConfig
from tiny_grpo import make_trainer
from transformers import AutoModelForCausalLM

from fgrpo_kernels.integrations.trl import FusedGRPOTrainer, accelerate_trainer, restore_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # TRL's own

B, P, T, V, H = 8, 3, 6, 417, 16
SIZES = {
    "vocab_size": V,
    "hidden_size": H,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1}
MODELS = {
    "plain": ("LlamaConfig", {"tie_word_embeddings": False}),
    "tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "head with a bias": ("PhiConfig", {}),
    "scaled (Cohere)": ("CohereConfig", {"logit_scale": 0.25, "pad_token_id": 0}),
    "divided (Granite)": ("GraniteConfig", {"logits_scaling": 4.0}),
    "capped (Gemma 2)": ("Gemma2Config", {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}),
    "experts": ("MixtralConfig", EXPERTS | {"output_router_logits": True}),
}


def tiny(name):
    kind, options = MODELS[name]
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(getattr(transformers, kind)(**SIZES | options), dtype=torch.float32)


def make_inputs(vocab=V, batch=B, length=T, seed=0):
    """What TRL hands to its loss: ragged completions, tool output among them, a third without advantage."""
    rng = torch.Generator().manual_seed(seed)
    completion_mask = (torch.arange(length) < torch.randint(1, length + 1, (batch, 1), generator=rng)).long()
    tool_mask = (torch.rand(batch, length, generator=rng) < 0.8).long()
    tool_mask[:, 0] = 1
    return {
        "prompt_ids": torch.randint(3, vocab, (batch, P), generator=rng),
        "prompt_mask": torch.ones(batch, P, dtype=torch.long),
        "completion_ids": torch.randint(3, vocab, (batch, length), generator=rng),
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": torch.randn(batch, generator=rng) * (torch.arange(batch) % 3 != 0),
        "num_items_in_batch": (completion_mask * tool_mask).sum(),
    }


def loss_and_gradients(trainer, inputs):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    metrics = {n: v[-1] for n, v in trainer._metrics["train"].items()}
    return loss.detach(), gradients, metrics


@pytest.mark.parametrize("off_policy", [False, True], ids=["fused loss", "TRL's loss"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, off_policy, tmp_path):
    trainer, _ = make_trainer(tmp_path, model=tiny(name), temperature=0.8)
    inputs = make_inputs()
    if off_policy:
        rng = torch.Generator().manual_seed(5)
        inputs["old_per_token_logps"] = -6 + torch.randn(B, T, generator=rng)
    theirs = loss_and_gradients(trainer, inputs)
    ours = loss_and_gradients(accelerate_trainer(trainer), inputs)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-6)
    assert theirs[1].keys() == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert "aux_loss" in theirs[2] or name != "experts"
    assert len(theirs[2]) > 3


def test_a_trained_copy_of_the_head(tmp_path):
    """peft's `modules_to_save`: the copy is trained, the original is the reference's."""
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"), peft_config=config)
    inputs = make_inputs()
    theirs = loss_and_gradients(trainer, inputs)
    ours = loss_and_gradients(accelerate_trainer(trainer), inputs)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-6)
    assert any("lm_head.modules_to_save" in name for name in ours[1])


def largest_allocation(run):
    """Bytes of the largest tensor that came into being."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    return max(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("off_policy", [False, True], ids=["fused loss", "TRL's loss"])
def test_no_logits_of_all_rows(off_policy, tmp_path):
    vocab, batch, length = 100_000, 8, 64
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**SIZES | {"vocab_size": vocab, "tie_word_embeddings": True})
    trainer, _ = make_trainer(tmp_path, model=AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    inputs = make_inputs(vocab, batch, length)
    inputs["completion_mask"].fill_(1)
    inputs["tool_mask"].fill_(1)
    if off_policy:
        inputs["old_per_token_logps"] = torch.full((batch, length), -11.0)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        trl_alone = largest_allocation(lambda: trainer.compute_loss(trainer.model, inputs))
    accelerate_trainer(trainer)
    fused = largest_allocation(lambda: trainer.compute_loss(trainer.model, inputs).backward())
    row = vocab * 4
    assert trl_alone >= batch * length * 32768 * 4  # its tile of the vocabulary, for all of these rows
    assert 64 * row < fused <= batch * length * row / 4


def test_drop_in_class(tmp_path):
    trainer, curve = make_trainer(tmp_path, trainer_class=FusedGRPOTrainer, steps=2)
    trainer.train()
    assert len(curve.logs) == 2
    assert trainer._fgrpo_plug.policy.enabled


def test_twice_is_once_and_restore_undoes(tmp_path, monkeypatch):
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    inputs = make_inputs()
    theirs = loss_and_gradients(trainer, inputs)
    assert accelerate_trainer(trainer) is trainer
    forward = trainer.model.forward
    accelerate_trainer(trainer, metrics="informative")
    assert trainer.model.forward == forward
    assert "informative" in loss_and_gradients(trainer, inputs)[2]

    restore_trainer(trainer)
    monkeypatch.setattr("fgrpo_kernels.models.causal_lm_head.CausalLMHead.token_logprobs", None)  # is not called
    restored = loss_and_gradients(trainer, inputs)
    assert restored[0] == theirs[0]
    assert all(restored[1][name].equal(gradient) for name, gradient in theirs[1].items())


def test_a_subclass_keeps_its_loss(tmp_path):
    class Twice(trl.GRPOTrainer):
        def _compute_loss(self, model, inputs):
            return 2 * super()._compute_loss(model, inputs)

    trainer, _ = make_trainer(tmp_path, model=tiny("plain"), trainer_class=Twice)
    inputs = make_inputs()
    theirs = loss_and_gradients(trainer, inputs)
    ours = loss_and_gradients(accelerate_trainer(trainer), inputs)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("where", ["object", "class"])
@pytest.mark.parametrize("name", ["compute_loss", "_compute_loss", "_get_per_token_logps_and_entropies"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_patched_loss_is_kept(name, where, before, tmp_path, monkeypatch):
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    own, calls = getattr(trl.GRPOTrainer, name), []

    def patched(self, *args, **options):
        calls.append(1)
        result = own(self, *args, **options)
        return 2 * result if isinstance(result, torch.Tensor) else (2 * result[0], *result[1:])

    def patch():
        owner = trl.GRPOTrainer if where == "class" else trainer
        monkeypatch.setattr(owner, name, patched if where == "class" else types.MethodType(patched, trainer))

    if before:
        patch()
        accelerate_trainer(trainer)
    else:
        accelerate_trainer(trainer)
        patch()
    inputs = make_inputs()
    ours = loss_and_gradients(trainer, inputs)
    assert len(calls) == 1
    theirs = loss_and_gradients(restore_trainer(trainer), inputs)
    assert len(calls) == 2
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-6)


def test_a_trainer_that_has_trained_in_bfloat16(tmp_path):
    """accelerate has put its model's forward into autocast by then."""
    trainer, _ = make_trainer(tmp_path, steps=1, bf16=True)
    trainer.train()
    assert accelerate_trainer(trainer)._fgrpo_plug.policy.enabled


def test_another_trainer_of_the_same_model_is_named(tmp_path):
    model = tiny("plain")
    trainer, _ = make_trainer(tmp_path, model=model)
    accelerate_trainer(trainer)
    make_trainer(tmp_path, model=model)
    with pytest.raises(RuntimeError, match="Was another trainer made from the same model"):
        loss_and_gradients(trainer, make_inputs())


@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": 5}, {"shift": True}], ids=["plain", "count", "shifted"])
def test_direct_calls_of_the_fused_model(options, tmp_path):
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    tokens = torch.tensor([[3, 4, 5, 6]])
    options = {"shift_labels": tokens} if "shift" in options else options
    call = {"input_ids": tokens, "labels": tokens, "fused_lm_head": True, **options}
    theirs = trainer.model(**call)
    ours = accelerate_trainer(trainer).model(**call)
    for name in ("loss", "log_probs", "entropy", "label_mask"):
        torch.testing.assert_close(ours[name], theirs[name], msg=name)


def test_completions_of_one_token(tmp_path):
    """TRL takes `[B, 1]` for one value a sequence."""
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    inputs = make_inputs(length=1)
    inputs["completion_mask"][2] = 0
    theirs = loss_and_gradients(trainer, inputs)
    torch.testing.assert_close(loss_and_gradients(accelerate_trainer(trainer), inputs), theirs, rtol=2e-4, atol=2e-6)


def test_evaluation(tmp_path):
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    inputs = make_inputs()
    trainer.model.eval()
    losses = []
    for _ in range(2):
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model, inputs))
        accelerate_trainer(trainer)
    torch.testing.assert_close(*losses)
    assert len(trainer._metrics["eval"]["entropy"]) == 2


def test_generation_still_works(tmp_path):
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    prompt = torch.tensor([[3, 4, 5]])
    before = trainer.model.generate(prompt, max_new_tokens=4, do_sample=False)
    after = accelerate_trainer(trainer).model.generate(prompt, max_new_tokens=4, do_sample=False)
    assert before.equal(after)
    assert trainer.model(input_ids=prompt, labels=prompt).loss > 0


def test_probing_leaves_no_trace(tmp_path):
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    trainer.model.train()
    trainer.model.model.layers[0].eval()
    state, modes = torch.get_rng_state(), [m.training for m in trainer.model.modules()]
    accelerate_trainer(trainer)
    assert torch.get_rng_state().equal(state)
    assert [m.training for m in trainer.model.modules()] == modes


class Shifted(torch.nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden + 1)


def test_a_head_that_does_something_else_is_refused(tmp_path):
    model = tiny("plain")
    head = Shifted(H, V, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    trainer, _ = make_trainer(tmp_path, model=model)
    with pytest.raises(ValueError, match=r"does not give this model's logits: .* differ by .* a Shifted as head"):
        accelerate_trainer(trainer)


def test_a_quantised_head_is_refused(tmp_path):
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    trainer.model.lm_head.weight = torch.nn.Parameter(torch.ones(V, H, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"weight torch\.int8; the fused head needs a floating-point matrix"):
        accelerate_trainer(trainer)


def test_an_adapter_on_the_head_is_refused_by_trl(tmp_path):
    config = LoraConfig(r=2, target_modules=["lm_head"])
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        make_trainer(tmp_path, model=tiny("plain"), peft_config=config, trainer_class=FusedGRPOTrainer)


def test_zero3_is_refused(tmp_path, monkeypatch):
    class Plugin:
        zero_stage = 3

    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", Plugin, raising=False)
    with pytest.raises(ValueError, match="ZeRO-3 takes the LM head's weight apart"):
        accelerate_trainer(trainer)


def test_mistakes_are_named(tmp_path, monkeypatch):
    trainer, _ = make_trainer(tmp_path, model=tiny("plain"))
    with pytest.raises(ValueError, match="metrics must be one of all, informative, got 'none'"):
        accelerate_trainer(trainer, metrics="none")
    with pytest.raises(TypeError, match=r"expected a trl\.GRPOTrainer, got dict"):
        accelerate_trainer({})
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    with pytest.raises(ImportError, match=r"made for trl 1\.16\.x, found 1\.17\.0"):
        accelerate_trainer(trainer)
