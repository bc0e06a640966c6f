"""A vocabulary split over workers gives what the whole one does: the shards are slices of one tensor."""

from itertools import pairwise

import pytest
import torch

from fgrpo_kernels import PartialTokenStats, merge_token_stats, partial_token_stats, reference

N, V = 8, 700
SPLITS = pytest.mark.parametrize("splits", [(0, V), (0, 300, V), (0, 1, 512, V)], ids=["whole", "two", "three"])


def case(dtype):
    rng = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(N, V, generator=rng, dtype=torch.float64)).to(dtype)
    targets = torch.randint(V, (N,), generator=rng)
    targets[:4] = torch.tensor([0, V - 1, 299, 300])
    logits[4, targets[4]] = logits[4].max() + 18
    logits[5, :300] = -torch.inf  # a shard of nothing; its target is elsewhere
    targets[5] = 600
    slopes = torch.randn(2, N, generator=rng, dtype=torch.float64)
    return logits, targets, slopes


def merged(logits, targets, splits, slopes, temperature):
    leaf = logits.detach().clone().requires_grad_()
    parts = [
        partial_token_stats(leaf[:, start:stop], targets, start, temperature=temperature)
        for start, stop in pairwise(splits)
    ]
    logp, entropy = merge_token_stats(parts)
    ((slopes[0] * logp).sum() + (slopes[1] * entropy).sum()).backward()
    return logp.detach().double(), entropy.detach().double(), leaf.grad.double()


def whole(logits, targets, slopes, temperature):
    leaf = logits.detach().clone().requires_grad_()
    logp, entropy = reference.token_logprobs(leaf, targets, temperature=temperature)
    ((slopes[0] * logp).sum() + (slopes[1] * entropy).sum()).backward()
    return logp.detach().double(), entropy.detach().double(), leaf.grad.double()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@SPLITS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_split_equals_whole(dtype, splits, temperature):
    logits, targets, slopes = case(dtype)
    got = merged(logits, targets, splits, slopes.to(dtype), temperature)
    exact = whole(logits.double(), targets, slopes.to(dtype).double(), temperature)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-6
    for name, ours, expected in zip(("logp", "entropy", "gradient"), got, exact, strict=True):
        assert (ours - expected).abs().max() <= tolerance * expected.abs().max(), name


@pytest.mark.parametrize("margin", [12.0, 20.0, 30.0])
def test_gradient_of_a_target_far_ahead(margin):
    logits = torch.zeros(1, 4)
    logits[0, 2] = margin
    gradient = merged(logits, torch.tensor([2]), (0, 3, 4), torch.tensor([[1.0], [0.0]]), 1.0)[2]
    rest = 3 * torch.tensor(-margin, dtype=torch.float64).exp()
    torch.testing.assert_close(gradient[0, 2], rest / (1 + rest), rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient[0, 3], -rest / 3 / (1 + rest), rtol=1e-4, atol=0)


def test_an_empty_shard_beside_logits_far_below_0():
    """Of nothing but -inf, or of no columns: it has no say, whatever the others' size."""
    logits = torch.cat([torch.full((1, 5), -torch.inf), torch.full((1, 5), -200.0)], 1)
    logits[0, 6] = -199.0
    targets, slopes = torch.tensor([6]), torch.ones(2, 1)
    exact = whole(logits.double(), targets, slopes.double(), 1.0)
    for splits in ((0, 5, 10), (0, 0, 5, 5, 10)):
        for ours, expected in zip(merged(logits, targets, splits, slopes, 1.0), exact, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_only_ones_own_part_needs_a_gradient():
    """As after an all-gather: the others' statistics are constants."""
    logits, targets, slopes = case(torch.float32)
    expected = merged(logits, targets, (0, 300, V), slopes.float(), 1.0)[2]
    mine = logits[:, 300:].clone().requires_grad_()
    theirs = PartialTokenStats(*(x.detach() for x in partial_token_stats(logits[:, :300], targets, 0)))
    logp, entropy = merge_token_stats([theirs, partial_token_stats(mine, targets, 300)])
    ((slopes[0].float() * logp).sum() + (slopes[1].float() * entropy).sum()).backward()
    torch.testing.assert_close(mine.grad.double(), expected[:, 300:])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: merge_token_stats([]), ValueError, "at least one shard", id="none"),
        pytest.param(
            lambda: partial_token_stats(torch.zeros(2, 5), torch.arange(2), -1), ValueError, "vocab_start", id="at"
        ),
        pytest.param(
            lambda: partial_token_stats(torch.zeros(2, 5), torch.arange(3), 0), ValueError, "targets", id="shape"
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
