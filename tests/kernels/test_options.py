"""Every option of the row kernels next to the reference in float64: on a GPU where there is one, else as CI runs it."""

import math

import pytest
import torch

from fgrpo_kernels import (
    CISPO,
    SAPO,
    PPOClip,
    group_advantages,
    grpo_loss,
    merge_token_stats,
    partial_token_stats,
    reference,
    token_logprobs,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, T, V = 3, 7, 301


def inputs():
    """Logits with more columns and one more token than are used; a row to leave out that is NaN, on every device."""
    rng = torch.Generator().manual_seed(4)
    wide = 2 * torch.randn(B, T + 1, V + 19, generator=rng)
    wide[1, 2] = torch.nan
    targets = torch.randint(V, (B, T), generator=rng)
    targets[0, :2] = torch.tensor([0, V - 1])
    logp = wide[:, :-1, :V].log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1).nan_to_num()
    weights = torch.rand(B, T, generator=rng)
    weights[1, 2] = 0
    factor = torch.rand(B, T, generator=rng)
    factor[2, 3] = 0
    arguments = {
        "targets": targets,
        "advantages": torch.tensor([1.2, -0.7, 0.4]),
        "weights": weights,
        "old_logp": logp + 0.4 * torch.randn(B, T, generator=rng),
        "ref_logp": logp + 0.2 * torch.randn(B, T, generator=rng),
        "policy_factor": factor,
        "vocab_size": V,
        "temperature": 0.8,
    }
    return wide.to(DEVICE), {name: x.to(DEVICE) if torch.is_tensor(x) else x for name, x in arguments.items()}


OPTIONS = {
    "clip": {},
    "clip with a bound": {"objective": PPOClip(0.1, 0.3, delta=1.1)},
    "cispo": {"objective": CISPO(0.8, 1.3)},
    "cispo without a bound": {"objective": CISPO(high=math.inf)},
    "sapo": {"objective": SAPO()},
    "k1": {"beta": 0.3, "kl": "k1"},
    "k2": {"beta": 0.3, "kl": "k2"},
    "k3": {"beta": 0.3},
    "k3 with the ratio": {"beta": 0.3, "kl": "k3_is"},
    "entropy": {"entropy_coef": 0.2},
    "on policy": {"old_logp": None},
    "sequences": {"objective": PPOClip(level="sequence"), "beta": 0.1, "entropy_coef": 0.1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_loss(name):
    wide, arguments = inputs()
    results = []
    for op, logits in ((grpo_loss, wide), (reference.grpo_loss, wide.double())):
        leaf = logits.requires_grad_()
        loss, metrics = op(leaf[:, :-1], **arguments | OPTIONS[name])
        (gradient,) = torch.autograd.grad(3 * loss, leaf)
        results.append((loss.detach().double(), gradient.double(), {k: x.double() for k, x in metrics.items()}))
    torch.testing.assert_close(*results, rtol=2e-5, atol=2e-6)
    assert results[0][1][1, 2].eq(0).all()
    assert results[0][1][..., V:].eq(0).all()


@pytest.mark.parametrize("objective", [PPOClip(), PPOClip(level="sequence")], ids=["token", "sequence"])
def test_a_graph_that_is_kept_gives_its_gradient_again(objective):
    wide, arguments = inputs()
    leaf = wide.requires_grad_()
    loss = grpo_loss(leaf[:, :-1], **arguments, objective=objective).loss
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(2 * loss, leaf)
    torch.testing.assert_close(second, 2 * first)


def gradient_of_logprobs(logits, targets, **options):
    logp, entropy = token_logprobs(logits, targets, temperature=0.8, **options)
    return (logp - 0.3 * entropy).sum()


def test_a_gradient_in_place():
    wide, arguments = inputs()
    targets, clean = arguments["targets"], wide.nan_to_num()
    leaf = clean.double().requires_grad_()
    logp, entropy = reference.token_logprobs(leaf[:, :-1], targets, temperature=0.8)
    (exact,) = torch.autograd.grad((logp - 0.3 * entropy).sum(), leaf)
    leaf = clean.clone().requires_grad_()
    logits = leaf[:, :-1] * 1.0
    total = gradient_of_logprobs(logits, targets, inplace_backward=True)
    (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True)
    torch.testing.assert_close(gradient.double(), exact, rtol=2e-5, atol=2e-6)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("in_place", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("shape", [(2, 1, 3, V), (0, V)], ids=str)
def test_logits_of_other_shapes(shape, in_place):
    """More dimensions than rows fold into, the vocabulary not last in memory; and no rows."""
    rng = torch.Generator().manual_seed(6)
    logits = torch.randn(shape, generator=rng).transpose(-1, -2).contiguous().transpose(-1, -2).to(DEVICE)
    targets = torch.randint(V, shape[:-1], generator=rng).to(DEVICE)
    exact, leaf = logits.double().requires_grad_(), logits.requires_grad_()
    options = {"inplace_backward": True} if in_place else {}
    got = torch.autograd.grad(gradient_of_logprobs(leaf * 1.0, targets, **options), leaf)[0]
    logp, entropy = reference.token_logprobs(exact, targets, temperature=0.8)
    (expected,) = torch.autograd.grad((logp - 0.3 * entropy).sum(), exact)
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=2e-6)


def test_rows_that_share_memory_are_not_overwritten():
    logits, targets = torch.randn(1, V, device=DEVICE).expand(4, V), torch.arange(4, device=DEVICE)
    with pytest.raises(ValueError, match=r"these share memory, with strides \(0, 1\); were they expanded"):
        token_logprobs(logits, targets, inplace_backward=True)


def test_shards():
    wide, arguments = inputs()
    logits, targets = wide.nan_to_num()[:, :-1, :V], arguments["targets"]
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = logits.to(dtype).requires_grad_()
        if dtype == torch.float32:
            parts = [partial_token_stats(leaf[..., a:b], targets, a, temperature=0.8) for a, b in ((0, 100), (100, V))]
            logp, entropy = merge_token_stats(parts)
        else:
            logp, entropy = reference.token_logprobs(leaf, targets, temperature=0.8)
        (gradient,) = torch.autograd.grad((logp - 0.3 * entropy).sum(), leaf)
        results.append([x.detach().double() for x in (logp, entropy, gradient)])
    torch.testing.assert_close(*results, rtol=2e-5, atol=2e-6)


OF_REWARDS = [
    {},
    {"baseline": "leave_one_out"},
    {"scale": "batch"},
    {"multi_objective_aggregation": "normalize_then_sum"},
]


@pytest.mark.parametrize("ids", [False, True], ids=["groups in a row", "groups by id"])
@pytest.mark.parametrize("options", OF_REWARDS, ids=str)
def test_advantages_of_several_rewards(options, ids):
    rng = torch.Generator().manual_seed(5)
    rewards = torch.rand(12, 3, generator=rng)
    rewards[3, 1] = rewards[7] = torch.nan
    weights = torch.tensor([1.0, 0.5, 2.0])
    group_ids = torch.arange(12) % 3
    groups = {"group_ids": group_ids.to(DEVICE), "num_groups": 3} if ids else {"group_size": 4}
    got = group_advantages(rewards.to(DEVICE), reward_weights=weights.to(DEVICE), **groups, **options)
    groups = groups | ({"group_ids": group_ids} if ids else {})
    exact = reference.group_advantages(rewards.double(), reward_weights=weights.double(), **groups, **options)
    for ours, expected in zip(got, exact, strict=True):
        torch.testing.assert_close(ours.cpu().to(expected.dtype), expected, rtol=1e-5, atol=1e-5)


def test_groups_without_rows():
    ids = torch.empty(0, dtype=torch.int64, device=DEVICE)
    got = group_advantages(torch.empty(0, device=DEVICE), group_ids=ids, num_groups=2)
    assert got.degenerate.tolist() == [True, True]
    assert got.mean.isnan().all()
    assert got.std.eq(0).all()
