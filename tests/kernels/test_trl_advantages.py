"""Advantages next to TRL's own: the lines of `GRPOTrainer` that aggregate rewards, taken out of its source and run."""

import ast
import inspect
import math
import textwrap
from types import SimpleNamespace

import needs_trl  # noqa: F401 - skips without TRL 1.16
import pytest
import torch
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from fgrpo_kernels import group_advantages, reference

G = 4  # completions per prompt
WEIGHTS = torch.tensor([1.0, 0.5, -2.0])


def trl_advantages(rewards, aggregation, scale):
    """Run the statement that chooses by `multi_objective_aggregation`, in the rewards' dtype."""
    method = ast.parse(textwrap.dedent(inspect.getsource(GRPOTrainer._generate_and_score_completions)))
    choice = "self.multi_objective_aggregation == 'sum_then_normalize'"
    (statement,) = (node for node in ast.walk(method) if isinstance(node, ast.If) and ast.unparse(node.test) == choice)
    trainer = SimpleNamespace(
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        reward_weights=WEIGHTS.to(rewards.dtype),
        reward_funcs=[None] * rewards.shape[1],
    )
    names = {
        "self": trainer,
        "torch": torch,
        "nanstd": nanstd,
        "device": rewards.device,
        "num_generations": G,
        "rewards_per_func": rewards,
        "unscorable_mask": rewards.isnan().all(1),
    }
    exec(compile(ast.Module([statement], []), "trl", "exec"), names)
    return names["advantages"].nan_to_num(nan=0.0)


def make_rewards():
    """Of very different spreads, with holes, a row and a column of a group without any, equal ones, one alone."""
    rng = torch.Generator().manual_seed(11)
    rewards = torch.rand(6 * G, 3, generator=rng, dtype=torch.float64) * torch.tensor([1.0, 100.0, 0.01])
    rewards[torch.rand(6 * G, 3, generator=rng) < 0.2] = math.nan
    rewards[1] = math.nan
    rewards[G : 2 * G, 1] = math.nan
    rewards[2 * G : 3 * G] = 0.5
    rewards[3 * G : 4 * G, 0] = 0.25
    rewards[4 * G + 1 : 5 * G, 2] = math.nan
    return rewards


CHOICES = [
    ({"multi_objective_aggregation": "normalize_then_sum"}, "group"),
    ({"scale": "group"}, "group"),
    ({"scale": "batch"}, "batch"),
    ({"scale": "none"}, "none"),
]


@pytest.mark.parametrize(("options", "scale"), CHOICES, ids=["normalize_then_sum", "group", "batch", "none"])
@pytest.mark.parametrize("shuffled", [False, True], ids=["size", "ids"])
def test_advantages(options, scale, shuffled):
    rewards = make_rewards()
    exact = trl_advantages(rewards, options.get("multi_objective_aggregation", "sum_then_normalize"), scale)
    order, groups = torch.arange(len(rewards)), {"group_size": G}
    if shuffled:
        order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(2))
        groups = {"group_ids": (torch.arange(len(rewards)) // G * 7 - 3)[order]}
    for op in (group_advantages, reference.group_advantages):
        for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):  # TRL's n / (n - 1) is float32
            got = op(rewards[order].to(dtype), **groups, reward_weights=WEIGHTS, **options)
            torch.testing.assert_close(got.advantages.double(), exact[order], rtol=tolerance, atol=tolerance)
            assert got.degenerate.tolist() == [False, False, True, False, False, False]
            assert got.advantages[order // G == 2].eq(0).all()


def test_every_reward_function_counts_alike():
    """GDPO: what decides is where a completion is in its group, not the function's units. Summed first, it drowns."""
    rewards = torch.tensor([[0.0, 900.0], [1.0, 900.5], [0.0, 901.0], [1.0, 900.0]])
    options = {"multi_objective_aggregation": "normalize_then_sum", "eps": 1e-9}
    once = group_advantages(rewards, 4, **options).advantages
    again = group_advantages(rewards * torch.tensor([1e-3, 1e3]) + 7.0, 4, **options).advantages
    torch.testing.assert_close(again, once, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(group_advantages(rewards, 4, eps=1e-9).advantages, once, atol=0.1)


def test_mean_and_std_are_those_of_the_rewards():
    rewards = make_rewards()
    plain = group_advantages(rewards, G, reward_weights=WEIGHTS)
    decoupled = group_advantages(rewards, G, reward_weights=WEIGHTS, multi_objective_aggregation="normalize_then_sum")
    torch.testing.assert_close(decoupled[1:3], plain[1:3], equal_nan=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multi_objective_aggregation": "gdpo"}, "multi_objective_aggregation must be one of sum_then_normalize"),
        ({"multi_objective_aggregation": "normalize_then_sum", "scale": "batch"}, "must be left at their defaults"),
        ({"multi_objective_aggregation": "normalize_then_sum", "baseline": "leave_one_out"}, "at their defaults"),
    ],
)  # fmt: skip
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.rand(4, 2), 4, **options)
