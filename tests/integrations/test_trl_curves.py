"""Training curves of TRL's own GRPOTrainer with and without the plug-in: every logged number, to float32's rounding."""

import functools
import itertools
import math
import random

import needs_trl  # noqa: F401 - skips without TRL 1.16
import pytest
from peft import LoraConfig
from tiny_grpo import FIXED, PROMPTS, reward, train

from fgrpo_kernels import linear_grpo_loss
from fgrpo_kernels.head.gradients import HeadGradients
from fgrpo_kernels.integrations.trl import accelerate_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # TRL's own

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]
OFF_POLICY = {"num_iterations": 2}  # each batch of completions trains twice, so its first policy is not the second


@pytest.fixture
def fused_losses(monkeypatch):
    """Counts the micro-batches whose loss `linear_grpo_loss` computed."""
    calls = []

    def counted(*args, **options):
        calls.append(1)
        return linear_grpo_loss(*args, **options)

    monkeypatch.setattr("fgrpo_kernels.models.causal_lm_head.linear_grpo_loss", counted)
    return calls


def assert_same_curve(ours, theirs, rtol=2e-5):
    assert len(ours.logs) == len(theirs.logs)
    for step, (x, y) in enumerate(zip(ours.logs, theirs.logs, strict=True)):
        assert list(x) == list(y)
        for name, value in y.items():
            # Losses and gradients are sums of terms of both signs: their rounding is of the terms' size, about 1.
            same = x[name] is value or math.isclose(x[name], value, rel_tol=rtol, abs_tol=rtol)
            assert same, f"step {step}, {name}: {x[name]} with the plug-in, {value} without"
    assert any(y["grad_norm"] > 0.1 for y in theirs.logs)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_twenty_steps(loss_type, tmp_path, fused_losses):
    options = {"steps": 20, "loss_type": loss_type, "learning_rate": 1e-4, "epsilon_high": 1.2}
    theirs = train(tmp_path, **options)
    ours = train(tmp_path, accelerate_trainer, **options)
    assert_same_curve(ours, theirs)
    assert any(log["frac_reward_zero_std"] > 0 for log in theirs.logs)
    assert len(fused_losses) == (0 if loss_type == "vespo" else 20)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_off_policy(loss_type, tmp_path, fused_losses):
    """Large steps, so that ratios leave the clip: TRL's own loss, because its metrics need every token."""
    options = OFF_POLICY | {"steps": 4, "loss_type": loss_type, "beta": 0.05, "learning_rate": 2e-3}
    theirs = train(tmp_path, **options)
    assert_same_curve(train(tmp_path, accelerate_trainer, **options), theirs, rtol=2e-4)
    clipped = {"cispo": "cispo_clip_ratio", "sapo": "kl", "vespo": "kl"}.get(loss_type, "clip_ratio/region_mean")
    assert any(log[clipped] > 0 for log in theirs.logs)
    assert not fused_losses


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        pytest.param({"steps": 20}, 20, id="twenty steps"),
        pytest.param({"beta": 0.1}, 4, id="reference model"),
        pytest.param(OFF_POLICY | {"beta": 0.05, "learning_rate": 1e-3}, 0, id="off-policy"),
        pytest.param({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 8, id="accumulation"),
        pytest.param({"gradient_checkpointing": True}, 4, id="checkpointing"),
    ],
)
def test_shared_prompts(options, fused, tmp_path, fused_losses):
    """Prompts once a group: TRL's curve, from fewer tokens."""
    options = {"steps": 4, "learning_rate": 1e-4} | options
    theirs = train(tmp_path, **options)
    tokens = []

    def sharing(trainer):
        accelerate_trainer(trainer, share_prompts=True)
        decoder = trainer.model.base_model
        decoder.register_forward_pre_hook(
            lambda _, __, inputs: tokens.append(inputs["input_ids"].shape) if not inputs["use_cache"] else None,
            with_kwargs=True,
        )

    assert_same_curve(train(tmp_path, sharing, **options), theirs, rtol=2e-4 if "beta" in options else 2e-5)
    assert len(fused_losses) == fused
    assert all(rows <= 2 for rows, _ in tokens), "rows are groups"
    assert tokens


def test_prompts_that_cannot_be_shared(tmp_path):
    """A model that refuses the mask trains as without, and says so once."""
    theirs = train(tmp_path, steps=2)

    def sharing(trainer):
        trainer.model.config.layer_types = ["chunked_attention"] * trainer.model.config.num_hidden_layers
        with pytest.warns(UserWarning, match="share_prompts: LlamaForCausalLM with .* one by one"):
            accelerate_trainer(trainer, share_prompts=True)
        del trainer.model.config.layer_types

    assert_same_curve(train(tmp_path, sharing, steps=2), theirs)


def lora(**options):
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)


def sampling_engine(trainer):
    """As if vLLM had sampled: the engine's log-probabilities differ from the trainer's, and some are missing."""
    rng, own = random.Random(3), trainer._generate_single_turn

    def generate(*args, **options):
        trainer.use_vllm = False
        completions, _ = own(*args, **options)
        trainer.use_vllm = True
        return completions, [[rng.choice([-0.1, -0.5, -1.0, -2.0, math.nan]) for _ in ids] for ids in completions]

    trainer._generate_single_turn = generate
    trainer.use_vllm = True


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo"])
def test_accumulation_costs_no_pass_over_the_gradient(loss_type, tmp_path, monkeypatch):
    """What TRL divides the loss by is in the weights, so that the gradient that comes in is 1."""
    incoming, result = [], HeadGradients.result

    def recorded(self, upstream=None):
        incoming.append(float(upstream))
        return result(self, upstream)

    monkeypatch.setattr(HeadGradients, "result", recorded)
    accumulation = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    train(tmp_path, accelerate_trainer, steps=1, loss_type=loss_type, **accumulation)
    assert incoming == [1.0, 1.0]


VARIANTS = {  # options of the run, and how many of its micro-batches take the fused loss
    "lora": ({"peft_config": lora()}, 4),
    "lora and a trained head": ({"peft_config": lora(modules_to_save=["lm_head"]), "beta": 0.1}, 4),
    "lora, shared prompts": ({"peft_config": lora(), "share_prompts": True}, 4),
    "lora with dropout": ({"peft_config": lora(lora_dropout=0.3)}, 4),
    "accumulation": ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 8),
    "accumulation, sequence mean": (
        {"loss_type": "grpo", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        8,
    ),
    "accumulation, one batch a step": (
        {"loss_type": "bnpo", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        8,
    ),
    "more batches than a step takes": ({"per_device_train_batch_size": 4, "steps_per_generation": 2}, 0),
    "checkpointing": ({"gradient_checkpointing": True}, 4),
    "compiled": ({"torch_compile": True, "torch_compile_backend": "eager", "steps": 2}, 2),
    "reference model": ({"beta": 0.1, "learning_rate": 3e-3}, 4),
    "reference model, plain k3": ({"beta": 0.1, "use_bias_correction_kl": False}, 4),
    "reference model, sequence mean": ({"beta": 0.1, "loss_type": "grpo"}, 0),
    "disabled adapter": ({"beta": 0.1, "peft_config": lora()}, 4),
    "high-entropy tokens": ({"top_entropy_quantile": 0.3}, 0),
    "entropy bonus": ({"entropy_coef": 0.05}, 0),
    "adaptive entropy": ({"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 5.0}, 0),
    "off-policy mask": (OFF_POLICY | {"off_policy_mask_threshold": 1e-4, "learning_rate": 1e-3}, 0),
    "sequence level": (OFF_POLICY | {"loss_type": "grpo", "importance_sampling_level": "sequence"}, 0),
    "two-sided clip": ({"delta": 1.5}, 4),
    "two-sided clip under 1": ({"delta": 0.7}, 0),
    "float32 head": ({"cast_lm_head_to_fp32": True}, 4),
    "truncated completions masked": ({"mask_truncated_completions": True}, 4),
    "truncated completions masked, shared prompts": ({"mask_truncated_completions": True, "share_prompts": True}, 4),
    "temperature": ({"temperature": 0.7}, 4),
    "importance correction": ({"prepare": sampling_engine}, 0),
    "importance correction by token": (
        {"prepare": sampling_engine, "vllm_importance_sampling_mode": "token_truncate", "beta": 0.1},
        0,
    ),
    "importance correction, vespo": (
        {"prepare": sampling_engine, "vllm_importance_sampling_mode": "token_mask", "loss_type": "vespo"},
        0,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_options(name, tmp_path, fused_losses):
    options, fused = VARIANTS[name]
    options = {"steps": 4, "learning_rate": 1e-4} | options
    own = options.pop("prepare", lambda trainer: None)
    share_prompts = options.pop("share_prompts", False)

    def with_plug(trainer):
        own(trainer)
        accelerate_trainer(trainer, share_prompts=share_prompts)

    theirs = train(tmp_path, own, **options)
    assert_same_curve(train(tmp_path, with_plug, **options), theirs)
    assert len(fused_losses) == fused


@pytest.mark.parametrize("beta", [0.0, 0.04], ids=["policy", "policy and reference"])
def test_bfloat16(beta, tmp_path, fused_losses):
    """Under autocast both round their logits to bfloat16, at different places.

    With a learning rate of 0, or the two models, a little apart after a step, would soon sample different completions.
    """
    options = {"steps": 4, "learning_rate": 0.0, "bf16": True, "beta": beta}
    theirs = train(tmp_path, **options)
    assert_same_curve(train(tmp_path, accelerate_trainer, **options), theirs, rtol=3e-2)
    assert len(fused_losses) == 4


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize("policy", [{}, OFF_POLICY], ids=["on-policy", "off-policy"])
def test_metrics_of_informative_tokens(policy, loss_type, tmp_path, fused_losses):
    """Less work and the same training; entropy alone is over fewer tokens, and extremes by sequence are not there."""
    options = policy | {"steps": 6, "learning_rate": 1e-3, "loss_type": loss_type}
    theirs = train(tmp_path, **options)
    ours = train(tmp_path, functools.partial(accelerate_trainer, metrics="informative"), **options)
    assert len(fused_losses) == 6
    by_sequence = {"clip_ratio/low_min", "clip_ratio/high_max"} if policy else set()
    differs = 0
    for x, y in zip(ours.logs, theirs.logs, strict=True):
        assert set(y) - set(x) == by_sequence
        assert set(x) - set(y) == {"informative"}
        assert 0 <= x["informative"] <= 1
        for key in set(y) - by_sequence - {"entropy"}:
            assert x[key] == pytest.approx(y[key], rel=1e-4, abs=1e-5), key
        if x["informative"] == 1:
            assert x["entropy"] == pytest.approx(y["entropy"], rel=1e-4)
        differs += x["informative"] < 1
    assert differs


def test_the_reward_makes_both_kinds_of_groups():
    texts = ["a", "b", "c", "d"]
    assert len(set(reward([PROMPTS[0]] * 4, texts))) > 1
    assert len(set(reward([FIXED] * 4, texts))) == 1
    assert len(set(itertools.chain(PROMPTS))) == 4
