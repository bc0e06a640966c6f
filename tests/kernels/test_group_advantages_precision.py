"""Rewards that are large, or differ by little next to their size: next to exact fractions."""

import math
from fractions import Fraction

import pytest
import torch

from fgrpo_kernels import group_advantages, reference

NAN = math.nan
GROUPS = {
    "offset": [[1e8, 1e8 + 8], [1e8 + 8, 1e8 + 24, 1e8 + 8]],
    "far apart": [[1e20, -1e20], [1e-20, 3e-20, 2e-20]],
    "largest": [[1.7e38, -1.7e38], [3e38, 2e38, 1e38]],
    "negative offset with holes": [[-4e9, NAN, -4e9 + 512, -4e9 - 1024], [NAN, 1.0, 0.0]],
    "one large": [[1e12, 1.0, 2.0, 3.0], [0.0, 1.0, 0.0]],
}
OPTIONS = [
    {"scale": scale, "baseline": baseline}
    for scale in ("group", "batch", "none")
    for baseline in ("mean", "leave_one_out")
]


def rounded(groups, dtype):
    """The rewards as they are in `dtype`, in lists again."""
    return [torch.tensor(group, dtype=dtype).tolist() for group in groups]


def by_hand(groups, scale, baseline, eps=1e-4):
    """Exact until the square root; NaN rows 0."""
    scored = [[Fraction(r) for r in group if r == r] for group in groups]

    def std(values):
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        shift = max(0, variance.numerator.bit_length() - 1000) & ~1  # float() has no more than 1024 bits
        return math.sqrt(variance / 2**shift) * 2.0 ** (shift // 2)

    divisors = [{"group": std(values) + eps, "none": 1.0}.get(scale) for values in scored]
    if scale == "batch":
        divisors = [std([v for values in scored for v in values]) + eps] * len(groups)
    out = []
    for group, values, divisor in zip(groups, scored, divisors, strict=True):
        for r in group:
            if r != r:
                out.append(0.0)
                continue
            n, own = len(values), Fraction(r)
            mean = (sum(values) - own) / (n - 1) if baseline == "leave_one_out" else sum(values) / n
            out.append(float((own - mean) / Fraction(divisor)))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exact_to_a_few_roundings(dtype, name, options):
    groups = rounded(GROUPS[name], dtype)
    exact, limits = by_hand(groups, **options), torch.finfo(dtype)
    rewards = torch.tensor([r for group in groups for r in group], dtype=dtype)
    ids = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    for op in (group_advantages, reference.group_advantages):
        for known in ({}, {"num_groups": len(groups)}):
            got = op(rewards, group_ids=ids, **known, **options).advantages
            assert got.dtype == dtype
            for group in ids.unique():
                error = (got.double() - exact)[ids == group].abs().max()
                assert error <= 2 * limits.eps * exact[ids == group].abs().max() + limits.tiny


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
def test_a_small_reward_beside_a_large_one_counts(options):
    """In float32, 1e8 + 0.1 is 1e8."""
    large = torch.tensor([[1e8, 0.1], [1e8, 0.9], [1e8, NAN], [1e8, 0.5]])
    weights = torch.tensor([3.0, 2.0])
    small = torch.tensor([0.2, 1.8, 0.0, 1.0], dtype=torch.float64)
    expected = reference.group_advantages(small, 4, **options).advantages
    for op in (group_advantages, reference.group_advantages):
        got = op(large, 4, reward_weights=weights, **options).advantages
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


def test_float64_rewards_whose_squares_overflow():
    rewards = torch.tensor([1e200, -1e200, 1e16, 1e16 + 2], dtype=torch.float64)
    result = group_advantages(rewards, 2)
    torch.testing.assert_close(
        result.advantages.abs(), torch.full((4,), 0.5, dtype=torch.float64).sqrt(), rtol=1e-4, atol=0
    )
    assert result.advantages.sign().tolist() == [1, -1, -1, 1]


def test_eps_keeps_its_meaning():
    """It is added to the standard deviation, whatever the rewards' size."""
    for offset in (0.0, 2.0**20):
        advantages = group_advantages(torch.tensor([offset, offset + 0.25]), 2, eps=0.1).advantages
        torch.testing.assert_close(advantages, torch.tensor([-0.125, 0.125]) / (0.125 * 2**0.5 + 0.1))
