"""A head whose vocabulary is split over workers: the same loss and gradients from `partial_token_stats` and a merge."""

from itertools import pairwise

import pytest
import torch
from loss_cases import V, make_case, trl_loss

from fgrpo_kernels import (
    PartialTokenStats,
    PPOClip,
    linear_grpo_loss,
    linear_token_logprobs,
    merge_token_stats,
    partial_token_stats,
)

SPLITS = pytest.mark.parametrize("splits", [(0, V), (0, 20, V), (0, 1, 13, V)], ids=["whole", "two", "three"])


def loss_of_shards(hidden, shards, splits, case, level):
    """Each worker's rows of the weight see all hidden states; then the loss of any trainer, here TRL's."""
    parts = [
        partial_token_stats(hidden @ shard.T, case.targets_BT, start, temperature=0.8)
        for shard, (start, _) in zip(shards, pairwise(splits), strict=True)
    ]
    merged = merge_token_stats(parts)
    return merged, trl_loss(*merged, case, "grpo", level=level, entropy_coef=0.05)


def whole_head(case, level):
    hidden, weight, _ = case.leaves()
    mask = case.mask_BT.double()  # `token_weights` gives float32, too coarse for the comparison in float64
    weights = mask / (mask.sum(1, keepdim=True).clamp(min=1) * len(mask))
    loss = linear_grpo_loss(
        hidden, weight, case.targets_BT, case.advantages_B, weights,
        old_logp=case.old_logp_BT, objective=PPOClip(0.2, 0.28, level=level), entropy_coef=0.05, temperature=0.8,
    ).loss  # fmt: skip
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad


@SPLITS
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 4e-6)], ids=["fp64", "fp32"])
def test_loss_and_gradients(splits, level, dtype, bound):
    case = make_case(dtype)
    hidden, weight, _ = case.leaves()
    shards = [weight.detach()[start:stop].clone().requires_grad_() for start, stop in pairwise(splits)]
    merged, loss = loss_of_shards(hidden, shards, splits, case, level)
    loss.backward()
    with torch.no_grad():
        logprobs = linear_token_logprobs(hidden, weight, case.targets_BT, temperature=0.8)
    expected = (*logprobs, *whole_head(case, level))
    got = (*merged, loss.detach(), hidden.grad, torch.cat([shard.grad for shard in shards]))
    for name, ours, exact in zip(("logp", "entropy", "loss", "hidden", "weight"), got, expected, strict=True):
        assert (ours.detach() - exact).abs().max() <= bound * exact.abs().max(), name


def test_each_worker_has_the_gradient_of_its_own_shard():
    """As after an all-gather, where the others' statistics are constants; hidden's gradient is the workers' sum."""
    splits = (0, 20, V)
    case = make_case()
    _, expected_hidden, expected_weight = whole_head(case, "token")
    total = torch.zeros_like(case.hidden_BTH)
    for mine, (start, stop) in enumerate(pairwise(splits)):
        hidden, shard = case.hidden_BTH.clone().requires_grad_(), case.weight_VH[start:stop].clone().requires_grad_()
        parts = []
        for worker, (first, last) in enumerate(pairwise(splits)):
            logits = hidden @ (shard if worker == mine else case.weight_VH[first:last]).T
            part = partial_token_stats(logits, case.targets_BT, first, temperature=0.8)
            parts.append(part if worker == mine else PartialTokenStats(*(x.detach() for x in part)))
        trl_loss(*merge_token_stats(parts), case, "grpo", entropy_coef=0.05).backward()
        torch.testing.assert_close(shard.grad, expected_weight[start:stop])
        total += hidden.grad
    torch.testing.assert_close(total, expected_hidden)
