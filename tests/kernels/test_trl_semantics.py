"""The semantics table: `grpo_loss` against the loss and gradient that TRL's own trainer computes.

Where the two differ on purpose (see docs/semantics.md), a test shows the difference.
"""

import dataclasses

import pytest
import torch
from needs_trl import trl
from trl_harness import (
    HIGH,
    KLS,
    LENGTHS,
    LOW,
    REDUCTION,
    RUNS,
    B,
    Result,
    T,
    assert_same,
    compare,
    make_batch,
    objective_of,
    our_result,
    trl_result,
    weights_of,
)

from fgrpo_kernels import (
    SAPO,
    VESPO,
    PPOClip,
    grpo_loss,
    importance_weights,
    off_policy_mask,
    token_logprobs,
    top_entropy_mask,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),  # TRL's own
    pytest.mark.pytorch_path,  # float64, but for a rerun in float32: test_trl_float32.py has the kernels
]
LEVELS = ["token", "sequence"]


@pytest.mark.parametrize("old", [True, False], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("pattern", LENGTHS)
@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", REDUCTION)
def test_table(loss_type, level, kl, pattern, old):
    trl_options, options = KLS[kl]
    compare(make_batch(pattern, old=old), loss_type, trl_options, level=level, **options)


@pytest.mark.parametrize("delta", [1.1, 2.0])  # under and over 1 + HIGH
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
def test_two_sided_clipping(loss_type, level, delta):
    batch = make_batch()
    compare(batch, loss_type, {"delta": delta}, level=level, objective=objective_of(loss_type, level, delta))


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("over", LEVELS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", [x for x in REDUCTION if x != "vespo"])
def test_importance_correction(loss_type, level, over, mode):
    batch = make_batch()
    low, high = 0.8, 1.2
    # What TRL's `_generate_and_score_completions` hands to the loss.
    log_ratio = (batch.old_logp - batch.sampling_logp) * batch.mask
    ratio = (log_ratio if over == "token" else log_ratio.sum(1, keepdim=True)).exp()
    outside = (ratio < low) | (ratio > high)
    assert (ratio < low).any()
    assert (ratio > high).any()
    assert not outside.all()
    ratio = ratio.clamp(low, high) if mode == "truncate" else ratio.masked_fill(outside, 0.0)
    factor = importance_weights(
        batch.old_logp, batch.sampling_logp, batch.mask, mode=mode, level=over, cap=high, floor=low
    )
    # The factor is of the policy term alone: with a KL term a misplaced one would show.
    compare(batch, loss_type, {"importance_ratio": ratio} | KLS["k3"][0], level=level, policy_factor=factor,
            **KLS["k3"][1])  # fmt: skip


@pytest.mark.parametrize("sampler", ["trainer", "engine", "engine-with-gaps"])
@pytest.mark.parametrize("loss_type", REDUCTION)
def test_off_policy_mask(loss_type, sampler):
    batch = make_batch("empty-row")
    if sampler == "engine-with-gaps":
        sampling_logp = batch.sampling_logp.clone()
        sampling_logp[:, 1] = torch.nan
        batch = dataclasses.replace(batch, sampling_logp=sampling_logp)
    sampling_logp = batch.old_logp if sampler == "trainer" else batch.sampling_logp
    logp, _ = batch.logp_and_entropy(batch.logits)
    factor = off_policy_mask(logp, sampling_logp, batch.advantages, batch.mask, threshold=0.3)
    assert 0 < (factor == 0).sum() < (batch.advantages < 0).sum()
    trl_options = {"off_policy_mask_threshold": 0.3, "with_sampling": sampler != "trainer"} | KLS["k3"][0]
    compare(batch, loss_type, trl_options, policy_factor=factor, **KLS["k3"][1])


@pytest.mark.parametrize("pattern", ["holes", "nothing"])
@pytest.mark.parametrize("loss_type", REDUCTION)
def test_top_entropy_mask(loss_type, pattern):
    batch = make_batch(pattern)
    _, entropy = batch.logp_and_entropy(batch.logits)
    factor = top_entropy_mask(entropy, batch.mask, fraction=0.3)
    assert pattern == "nothing" or 0 < factor.sum() < batch.mask.sum()
    compare(batch, loss_type, {"top_entropy_quantile": 0.3} | KLS["k3"][0], policy_factor=factor, **KLS["k3"][1])


@pytest.mark.parametrize("loss_type", REDUCTION)
def test_every_factor_at_once(loss_type):
    batch = make_batch("empty-row")
    logp, entropy = batch.logp_and_entropy(batch.logits)
    factor = off_policy_mask(logp, batch.sampling_logp, batch.advantages, batch.mask, threshold=0.3)
    factor = factor * top_entropy_mask(entropy, batch.mask, fraction=0.6)
    options = {"off_policy_mask_threshold": 0.3, "with_sampling": True, "top_entropy_quantile": 0.6}
    if loss_type != "vespo":
        ratio = importance_weights(batch.old_logp, batch.sampling_logp, batch.mask, cap=1.2)
        factor, options["importance_ratio"] = factor * ratio, ratio
    compare(batch, loss_type, options | KLS["k3_is"][0], policy_factor=factor, **KLS["k3_is"][1])


@pytest.mark.parametrize("loss_type", REDUCTION)
def test_advantages_by_token(loss_type):
    batch = make_batch()
    advantages = batch.advantages[:, None] + torch.linspace(-0.3, 0.3, T).double()
    compare(dataclasses.replace(batch, advantages=advantages.float().double()), loss_type)


@pytest.mark.parametrize("loss_type", REDUCTION)
def test_accumulation_and_workers(loss_type):
    """Two of four micro-batches a step, three workers whose gradients are averaged: TRL scales the loss, here
    `token_weights` has the normalisers of the whole step."""
    batch, accumulation, workers, generated = make_batch(), 2, 3, 500.0
    options = {"accumulation": accumulation, "steps_per_generation": 4, "num_processes": workers,
               "num_items": generated}  # fmt: skip
    # TRL means sequences over one worker's batch and averages; `generated` counts the tokens of all workers.
    weights = weights_of(batch, loss_type, num_sequences=B * accumulation,
                         num_tokens=generated * accumulation / 4 / workers)  # fmt: skip
    if loss_type == "bnpo":  # its normaliser is the micro-batch's own, so the mean over micro-batches stays outside
        weights = weights / accumulation
    compare(batch, loss_type, options, weights=weights)


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
@pytest.mark.parametrize("level", LEVELS)
def test_metrics(loss_type, level):
    """Means over tokens, of a reduction that weighs all tokens alike."""
    batch = make_batch()
    objective = objective_of(loss_type, level)
    ours = our_result(grpo_loss, batch, weights_of(batch, loss_type), objective=objective, **KLS["k3"][1]).metrics
    theirs = trl_result(batch, loss_type, level=level, **KLS["k3"][0]).metrics
    names = {"kl": "kl", "entropy": "entropy"}
    if level == "token":  # at sequence level TRL's clip ratios count sequences
        names |= {"clip_ratio/low": "clip_ratio/low_mean", "clip_ratio/high": "clip_ratio/high_mean"}
    for our_name, their_name in names.items():
        assert ours[our_name].item() == pytest.approx(theirs[their_name], rel=1e-6)
        assert ours[our_name] > 0


def test_defaults():
    """An objective without arguments is TRL's `loss_type` without arguments. The package's KL is plain k3: TRL's
    default times the ratio is asked for by name."""
    args = trl.GRPOConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none")
    assert args.epsilon_high is None  # as epsilon
    assert PPOClip() == PPOClip(args.epsilon, args.epsilon, args.delta)
    assert SAPO() == SAPO(args.sapo_temperature_pos, args.sapo_temperature_neg)
    assert VESPO() == VESPO(args.vespo_k_pos, args.vespo_lambda_pos, args.vespo_k_neg, args.vespo_lambda_neg)
    assert args.use_bias_correction_kl
    assert args.loss_type == "dapo"


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
def test_entropy_bonus_of_a_token_mean(loss_type):
    compare(make_batch(), loss_type, {"entropy_coef": 0.05}, entropy_coef=0.05)


def test_entropy_bonus_of_other_reductions_differs():
    """Ours is reduced as the loss is, TRL's is always a mean over tokens, and over the kept ones of a high-entropy
    mask. `token_logprobs` gives TRL's."""
    batch = make_batch()
    logits = batch.logits.clone().requires_grad_()
    entropy = token_logprobs(logits, batch.targets).entropy
    kept = top_entropy_mask(entropy, batch.mask, fraction=0.3)
    theirs = trl_result(batch, "grpo", entropy_coef=0.05, top_entropy_quantile=0.3)
    options = {"mask": batch.mask, "old_logp": batch.old_logp, "policy_factor": kept, "objective": PPOClip(LOW, HIGH)}
    weights = weights_of(batch, "grpo")

    ours = our_result(grpo_loss, batch, weights, entropy_coef=0.05, **options)
    assert (ours.loss - theirs.loss).abs() > 1e-3
    loss = grpo_loss(logits, batch.targets, batch.advantages, weights, **options).loss
    loss = loss - 0.05 * (entropy * kept).sum() / kept.sum()
    loss.backward()
    assert_same(Result(loss.detach(), logits.grad, {}), theirs, "grpo_loss and token_logprobs")


def test_vespo_bounds():
    """A token's log-ratio is held at -20 (rows 0 and 3), a sequence's sum at log 1e-8 (rows 1 and 4). A small k leaves
    so light a sequence a gradient that shows."""
    batch = make_batch("full")
    log_ratio = torch.zeros(B, T).double()
    log_ratio[[0, 3], 0], log_ratio[[0, 3], 1] = -25.0, 18.0
    log_ratio[[1, 4], :3] = -10.0
    logp, _ = batch.logp_and_entropy(batch.logits)
    batch = dataclasses.replace(batch, old_logp=(logp - log_ratio).float().double())
    compare(batch, "vespo", {"vespo_k_pos": 0.5, "vespo_k_neg": 0.6}, objective=VESPO(k_positive=0.5, k_negative=0.6))


def test_vespo_correction_is_the_samplers_logp():
    """TRL adds the log of the correction to `log w`: the sampler's log-probability as `old_logp` does the same, as
    long as no ratio is truncated. A truncated one is taken off `old_logp`."""
    batch = make_batch()
    ratio = importance_weights(batch.old_logp, batch.sampling_logp, batch.mask, cap=100.0)
    compare(batch, "vespo", {"importance_ratio": ratio} | KLS["k3"][0], old_logp=batch.sampling_logp, **KLS["k3"][1])

    capped = ratio.clamp(max=1.2)
    compare(batch, "vespo", {"importance_ratio": capped}, old_logp=batch.old_logp - capped.log())
    truncated = trl_result(batch, "vespo", importance_ratio=capped)
    ours = our_result(grpo_loss, batch, weights_of(batch, "vespo"), objective=VESPO(), old_logp=batch.sampling_logp)
    assert (ours.loss - truncated.loss).abs() > 1e-3


def test_what_the_mask_leaves_out_may_be_nan():
    """In TRL `0 * NaN` reaches the loss."""
    batch = make_batch("ragged")
    clean = trl_result(batch, "grpo")
    dirty = dataclasses.replace(batch, old_logp=batch.old_logp.masked_fill(batch.mask == 0, torch.nan))
    assert trl_result(dirty, "grpo").loss.isnan()
    for name, op, dtype in RUNS:
        ours = our_result(op, dirty, weights_of(dirty, "grpo"), dtype=dtype, objective=objective_of("grpo"))
        assert_same(ours, clean, name)
