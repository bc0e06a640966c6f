"""Advantages by the C++ core are the reference's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_kernels import group_advantages, native_groups, reference
from fgrpo_kernels.jit import INTERPRETED

SCALES, BASELINES = ("group", "batch", "none"), ("mean", "leave_one_out")

if INTERPRETED or not native_groups.serves_any:
    pytest.skip("the C++ core is not built, or not asked", allow_module_level=True)


def require_same(got, expected):
    """float32 as it is; float64 but for the last bits of torch's square root, which MKL does not always round right."""
    for a, b in zip(got, expected, strict=True):
        bound = {"rtol": 1e-14, "atol": 1e-300} if a.dtype == torch.float64 else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(a, b, equal_nan=True, **bound)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@settings(max_examples=60)
@given(data=st.data())
def test_as_the_reference(scale, baseline, data):
    """Of float32, float64 and bfloat16; rewards missing, equal, huge; ids ragged, in any order, groups empty."""
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    huge = 1e300 if dtype == torch.float64 else 1e30
    values = st.sampled_from([0.0, -0.0, 1.0, 0.1, 1e-310, huge, -huge, math.nan]) | st.floats(-1e6, 1e6)
    count, functions = data.draw(st.integers(1, 24)), data.draw(st.sampled_from([None, 1, 3]))
    total = count * (functions or 1)
    rewards = torch.tensor(data.draw(st.lists(values, min_size=total, max_size=total)), dtype=torch.float64).to(dtype)
    weights = None
    if functions:
        rewards = rewards.view(count, functions)
        weights = data.draw(st.sampled_from([None, torch.linspace(0.5, 2, functions)]))
    if data.draw(st.booleans()):
        ids = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
        chosen = {"group_ids": ids, "num_groups": 6}
        alone = bool((ids.bincount() == 1).any())
    else:
        size = data.draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
        chosen, alone = {"group_size": size}, size == 1
    options = {"scale": "batch" if alone else scale, "baseline": baseline, "reward_weights": weights}
    assert native_groups.serves(rewards)
    got = group_advantages(rewards, **chosen, **options)
    require_same(got, reference.group_advantages(rewards, **chosen, **options))


def test_rewards_with_strides_and_gradients():
    wide = torch.rand(12, 2, dtype=torch.float64, requires_grad=True)
    rewards = wide[:, 1]
    got = group_advantages(rewards, 4)
    require_same(got, reference.group_advantages(rewards.detach().clone(), 4))
    assert not got.advantages.requires_grad


def test_no_rewards():
    got = group_advantages(torch.empty(0), 4)
    assert [len(x) for x in got] == [0, 0, 0, 0]


def test_what_is_traced_goes_the_other_way(monkeypatch):
    monkeypatch.setattr(native_groups, "group_advantages", None)  # a call would fail
    compiled = torch.compile(lambda rewards: group_advantages(rewards, 4).advantages, backend="eager")
    rewards = torch.rand(8)
    torch.testing.assert_close(compiled(rewards), reference.group_advantages(rewards, 4).advantages)
