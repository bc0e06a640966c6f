"""A client's local GRPO: what it learns from, what it reports, and what does not disturb it."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GraniteConfig, GraniteForCausalLM

from fgrpo.client.local_training import backward, minibatches, train_locally
from fgrpo.client.masters import Masters
from fgrpo.client.owners import make_clients
from fgrpo.client.policy import Policy
from fgrpo.client.rollouts import sample
from fgrpo.client.round import client_round
from fgrpo.client.tally import Tally
from fgrpo.client.tasks.scoring import Scores
from fgrpo.config import ClientConfig, LoraConfig, RewardsConfig
from fgrpo.errors import TaskError, TrainingError
from fgrpo.records import Rollouts, from_json, to_json
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import Manifest, flatten, load_flat
from fgrpo.wire.payload import unpack
from fgrpo_kernels import group_advantages, grpo_loss, token_weights
from fgrpo_kernels.codec import decode


def train(policy, config, index=0, round_number=1):
    masters = Masters(policy.model, flatten(policy.model))
    return train_locally(policy, masters, make_clients(config)[index], config, round_number, Stopwatch())


def test_a_round_is_a_function_of_seed_client_and_round(policy, small_config):
    start_P = flatten(policy.model)
    ends = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        load_flat(policy.model, start_P)
        train(policy, small_config)
        ends.append(flatten(policy.model))
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], start_P)
    load_flat(policy.model, start_P)
    train(policy, small_config, round_number=2)
    assert not torch.equal(flatten(policy.model), ends[0])


def test_report(policy, small_config):
    report = train(policy, small_config, index=1)
    assert (report.client, report.round, report.sequences) == ("gcd", 1, 2 * 4 * 4)
    assert 0 <= report.reward_mean <= 10
    assert report.tokens == pytest.approx(report.completion_length * report.sequences)
    assert report.informative == round((1 - report.degenerate) * report.sequences)
    assert {"loss", "grad_norm", "entropy"} <= report.metrics.keys()
    assert {"rollout", "reward", "train"} == report.seconds.keys()


def test_informative_counts_completions_with_a_reward_in_groups_of_unequal_ones(small_config):
    nan, tally = float("nan"), Tally()
    for rewards in ([1.0, 1.0, 1.0, 0.5, nan, 0.5], [nan, nan, 2.0, 0.0, 1.0, nan], [nan, 3.0, nan, 0.0, 0.0, 0.0]):
        rewards_B = torch.tensor(rewards)
        masks_BT = torch.ones(6, 1, dtype=torch.bool)
        rollouts = Rollouts(masks_BT.long(), masks_BT.long(), masks_BT, torch.zeros(6, 1), ("",) * 6)
        tally.add_rollouts(rollouts, rewards_B, group_advantages(rewards_B, 3), Scores([], [], {}, 0, ""))
    report = tally.report(make_clients(small_config)[0], 1, Stopwatch())
    assert (report.informative, report.sequences, report.unrewarded) == (2, 12, 6)
    line = to_json(report)
    assert from_json(line) == report
    del line["informative"]
    assert from_json(line) == replace(report, informative=0), "a run folder from before this was counted"


def fails_without_a_5(completion, answer):
    return float(completion.index("5"))


def test_completions_whose_reward_fails_leave_the_batch_and_are_counted(policy, small_config):
    task = replace(small_config.clients["sums"].tasks[0], reward=f"{__name__}:fails_without_a_5")
    config = replace(small_config, clients={"sums": ClientConfig([task])}, train=replace(small_config.train, beta=0.1))
    report = train(policy, config)
    assert report.sequences + report.unrewarded == 2 * 4 * 4
    assert report.unrewarded == report.reward_failures > 0
    assert "fails_without_a_5' failed (" in report.reward_failure
    assert "ValueError: substring not found" in report.reward_failure
    assert report.completion_length == pytest.approx(report.tokens / report.sequences)
    zero = train(Policy.load(config), replace(config, rewards=RewardsConfig("zero")))
    assert (zero.sequences, zero.unrewarded) == (2 * 4 * 4, 0)
    assert zero.reward_failures > 0
    with pytest.raises(TaskError, match="substring not found"):
        train(policy, replace(config, rewards=RewardsConfig("raise")))


def never(completion, answer):
    return None


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_round_without_any_reward_is_an_error_and_moves_nothing(policy, small_config, beta):
    task = replace(small_config.clients["sums"].tasks[0], reward=f"{__name__}:never")
    options = {"clients": {"sums": ClientConfig([task])}, "train": replace(small_config.train, beta=beta)}
    before_P = flatten(policy.model)
    with pytest.raises(TaskError, match="none of 32 completions got a reward"):
        train(policy, replace(small_config, **options))
    assert torch.equal(flatten(policy.model), before_P)


def test_several_rewards_are_reported_apart(policy, small_config):
    task = replace(small_config.clients["sums"].tasks[0], reward={"number_match": 1.0, f"{__name__}:never": 0.5})
    report = train(policy, replace(small_config, clients={"sums": ClientConfig([task], reward_scale=2.0)}))
    assert report.metrics["reward/number_match"] == pytest.approx(report.reward_mean / 2)
    assert f"reward/{__name__}:never" not in report.metrics


def test_later_passes_leave_the_trust_region_and_are_clipped(policy, small_config):
    config = replace(small_config, train=replace(small_config.train, updates_per_rollout=4, lr=1e-2))
    report = train(policy, config)
    assert report.metrics["clip_ratio/low"] + report.metrics["clip_ratio/high"] > 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="default"),
        pytest.param({"level": "sequence", "reduction": "grpo"}, id="sequence-level"),
        pytest.param({"beta": 0.1, "entropy_coef": 0.01}, id="kl-and-entropy"),
        pytest.param({"reduction": "dr_grpo", "advantage_scale": "none"}, id="dr-grpo"),
        pytest.param({"baseline": "leave_one_out", "advantage_scale": "batch", "reduction": "bnpo"}, id="rloo"),
    ],
)
def test_every_objective_trains(small_config, change):
    config = replace(small_config, train=replace(small_config.train, **change))
    policy = Policy.load(config)
    before = flatten(policy.model)
    report = train(policy, config)
    assert torch.isfinite(flatten(policy.model)).all()
    assert not torch.equal(before, flatten(policy.model))
    assert ("kl" in report.metrics) == ("beta" in change)


@pytest.mark.parametrize(
    "change",
    [
        {"level": "sequence"},
        {"reduction": "grpo"},
        {"baseline": "leave_one_out", "advantage_scale": "none"},
        {"advantage_scale": "batch"},
        {"beta": 1.0},
        {"entropy_coef": 0.1},
        {"max_grad_norm": 0.01, "weight_decay": 0.1},
        {"clip_low": 0.01, "clip_high": 0.01},
        {"minibatches": 4},
        {"proximal": 10.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_option_is_ignored(small_config, policy, change):
    base = replace(small_config.train, updates_per_rollout=3, minibatches=1, local_steps=1)
    ends = []
    for options in (base, replace(base, **change)):
        config = replace(small_config, train=options)
        policy = Policy.load(config)
        report = train(policy, config)
        ends.append(flatten(policy.model))
    assert (ends[0] - ends[1]).abs().max() > 1e-6
    if "beta" in change:
        assert report.metrics["kl"] > 0


def test_dropout_is_seeded_too(small_config):
    config = replace(small_config, lora=LoraConfig(rank=4, dropout=0.5))
    ends = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        policy = Policy.load(config)
        train(policy, config)
        ends.append(flatten(policy.model))
    assert torch.equal(*ends)


def test_a_capped_head_takes_the_logits_way(policy, small_config, tmp_path):
    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    scaled = GraniteForCausalLM(
        GraniteConfig(vocab_size=len(policy.tokenizer), intermediate_size=32, logits_scaling=8.0, **options)
    )
    scaled.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    config = replace(small_config, model=str(tmp_path), train=replace(small_config.train, beta=0.1))
    granite = Policy.load(config)
    assert not granite.plain_head
    report = train(granite, config)
    assert report.metrics["ratio/max"] > 0


class MostLogits(TorchDispatchMode):
    """The most rows as wide as the vocabulary that any one tensor made inside has, but for the head's weight."""

    def __init__(self, weight_VH):
        super().__init__()
        self.weight_shape_HV, self.rows = weight_VH.t().shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            is_logits = isinstance(x, torch.Tensor) and x.shape[-1:] == self.weight_shape_HV[-1:]
            if is_logits and x.shape != self.weight_shape_HV:
                self.rows = max(self.rows, x.numel() // x.shape[-1])
        return out


def test_a_training_step_never_holds_the_logits_of_all_rows(policy, small_config, monkeypatch):
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_MIN_ROWS", 16)
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_BLOCK_BYTES", 0)
    config = replace(small_config, train=replace(small_config.train, updates_per_rollout=1, minibatches=1))
    rollouts = sample(policy.model, policy.tokenizer, ["12 + 31 ="] * 4, config.rollout, seed=0)
    advantages_B = torch.linspace(-1.0, 1.0, len(rollouts.completions))
    for plain_head in (True, False):
        with MostLogits(policy.model.get_output_embeddings().weight) as most:
            (batches,) = minibatches(policy, rollouts, advantages_B, config)
            backward(replace(policy, plain_head=plain_head), batches, config)
        if plain_head:
            assert 1 < most.rows <= 16
        else:  # the measure sees such a tensor where there is one
            assert most.rows >= len(batches[0].targets_N) > 32


@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("max_tokens", [8192, 20, 1])
def test_what_enters_the_model_gives_the_gradient_of_all_sequences(policy, small_config, share, max_tokens):
    """Prompts once a group, no advantage-0 rows, parts of `max_tokens`: the loss and gradient of plain padded rows."""
    train = replace(small_config.train, updates_per_rollout=1, minibatches=1, max_tokens=max_tokens)
    config, policy = replace(small_config, train=train), replace(policy, shares_prefixes=share)
    prompts = [q.example.prompt for q in make_clients(config)[0].draw(0, 4)]
    rollouts = sample(policy.model, policy.tokenizer, prompts, config.rollout, seed=1)
    advantages_B = torch.randn(16, generator=torch.Generator().manual_seed(0))
    advantages_B[4:12] = 0
    (batches,) = minibatches(policy, rollouts, advantages_B, config)
    metrics = backward(policy, batches, config)
    assert (len(batches) > 1) == (max_tokens < 60)
    kept = {name: p.grad.clone() for name, p in policy.model.named_parameters()}
    policy.model.zero_grad()
    logits_BLV = policy.model(
        input_ids=rollouts.tokens_BL,
        attention_mask=rollouts.attention_BL,
        position_ids=(rollouts.attention_BL.cumsum(1) - 1).clamp_min(0),
    ).logits
    start = rollouts.prompt_length
    whole = grpo_loss(
        logits_BLV[:, start - 1 : -1],
        rollouts.tokens_BL[:, start:],
        advantages_B,
        token_weights(rollouts.mask_BT, "dapo"),
        old_logp=rollouts.old_logp_BT,
    )
    whole.loss.backward()
    torch.testing.assert_close(metrics["loss"], whole.loss.detach())
    for name, value in whole.metrics.items():
        if name != "informative":
            torch.testing.assert_close(metrics[name], value)
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(kept[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_lora_trains_only_the_adapters(small_config):
    config = replace(small_config, lora=LoraConfig(rank=4), train=replace(small_config.train, beta=0.05))
    policy = Policy.load(config)
    assert policy.plain_head
    manifest = Manifest.of(policy.model)
    assert manifest.size < 100_000
    assert all("lora_" in name for name in manifest.names)
    assert torch.equal(flatten(policy.model), flatten(Policy.load(config).model)), "the seed decides the adapters"
    frozen = {n: p.clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    before = flatten(policy.model)
    train(policy, config)
    assert not torch.equal(before, flatten(policy.model))
    assert all(torch.equal(p, frozen[n]) for n, p in policy.model.named_parameters() if n in frozen)


def test_flat_vector_round_trip(policy):
    params_P = flatten(policy.model)
    assert len(params_P) == Manifest.of(policy.model).size
    load_flat(policy.model, params_P * 2)
    assert torch.equal(flatten(policy.model), params_P * 2)


def test_client_round_replies_with_the_difference(policy, small_config):
    start_P = flatten(policy.model)
    residual_P = torch.zeros_like(start_P)
    client = make_clients(small_config)[0]
    reply = client_round(client, policy, start_P, residual_P, 1, small_config, Stopwatch())
    header, delta = unpack(reply.payload)
    assert (header.client, header.round) == ("sums", 1)
    torch.testing.assert_close(decode(delta) + residual_P, flatten(policy.model) - start_P, atol=1e-7, rtol=1e-4)


def test_rounding_to_bfloat16_is_no_part_of_the_delta(small_config):
    """A server's average lies between the values that bfloat16 has; no client may pull it back to them."""
    config = replace(small_config, dtype="bfloat16", train=replace(small_config.train, lr=1e-30))
    policy = Policy.load(config)
    between_P = flatten(policy.model) * 1.001
    reply = client_round(make_clients(config)[0], policy, between_P, None, 1, config, Stopwatch())
    assert not decode(unpack(reply.payload)[1]).any()


@pytest.mark.parametrize("lr", [1e-5, 1e-6])
def test_small_steps_of_a_bfloat16_model_are_kept(small_config, lr):
    """Most are smaller than the distance of two bfloat16 numbers; the delta has them all the same."""
    codec = replace(small_config.codec, codec="none", error_feedback=False)
    config = replace(small_config, dtype="bfloat16", codec=codec, train=replace(small_config.train, lr=lr))
    policy = Policy.load(config)
    start_P = flatten(policy.model)
    reply = client_round(make_clients(config)[0], policy, start_P, None, 1, config, Stopwatch())
    delta_P = decode(unpack(reply.payload)[1])
    moved_P = flatten(policy.model) != start_P
    assert (delta_P != 0).float().mean() > 0.99
    assert moved_P.float().mean() < 0.2, "the model itself shows few of them"
    torch.testing.assert_close((start_P + delta_P).bfloat16().float(), flatten(policy.model), atol=0, rtol=0)


@pytest.mark.parametrize("local_steps", [1, 2])
def test_divergence_is_reported_and_the_residual_kept(policy, small_config, local_steps):
    config = replace(small_config, train=replace(small_config.train, lr=1e30, local_steps=local_steps))
    residual_P = torch.ones(Manifest.of(policy.model).size)
    with pytest.raises(TrainingError, match=r"training diverged.*train\.lr"):
        client_round(make_clients(config)[0], policy, flatten(policy.model), residual_P, 1, config, Stopwatch())
    assert (residual_P == 1).all()
