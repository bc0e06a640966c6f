import math

import pytest
import torch

from fgrpo_kernels import group_advantages, reference

NAN = math.nan


def by_hand(groups, *, scale="group", baseline="mean", eps=1e-4):
    """Advantages of a list of groups (lists of rewards without NaN), in Python floats."""
    batch = [r for group in groups for r in group]

    def std(values):
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))

    out = []
    for group in groups:
        for i, reward in enumerate(group):
            others = group[:i] + group[i + 1 :] if baseline == "leave_one_out" else group
            advantage = reward - sum(others) / len(others)
            divisor = {
                "group": lambda group=group: std(group) + eps,
                "batch": lambda: std(batch) + eps,
                "none": lambda: 1,
            }
            out.append(advantage / divisor[scale]())
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_formula(scale, baseline, dtype):
    groups = [[0.1, 0.9, 0.4], [3.0, -2.0, 1.0]]
    rewards = torch.tensor(groups, dtype=dtype).flatten()
    result = group_advantages(rewards, 3, scale=scale, baseline=baseline)
    assert result.advantages.dtype == dtype
    torch.testing.assert_close(
        result.advantages.double(), by_hand(groups, scale=scale, baseline=baseline), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(result.mean.double(), torch.tensor(groups, dtype=torch.float64).mean(1))
    torch.testing.assert_close(result.std.double(), torch.tensor(groups, dtype=torch.float64).std(1))
    assert not result.degenerate.any()


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_ragged_groups_in_any_order(scale, baseline):
    groups = {7: [0.1, 0.9, 0.4, 0.0], -3: [3.0, 1.0], 40: [5.0, 6.0, 8.0]}
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([i for i, rewards in groups.items() for _ in rewards])
    rewards = torch.tensor([r for group in groups.values() for r in group], dtype=torch.float64)
    result = group_advantages(rewards[order], group_ids=ids[order], scale=scale, baseline=baseline)
    torch.testing.assert_close(result.advantages, by_hand(list(groups.values()), scale=scale, baseline=baseline)[order])
    torch.testing.assert_close(result.mean, torch.tensor([2.0, 0.35, 19 / 3], dtype=torch.float64))  # by id


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_number_of_groups_known(scale):
    """The same as without; and a group without rows has no mean and nothing to tell apart."""
    ids = torch.tensor([3, 0, 3, 0, 1, 3, 1], dtype=torch.int32)
    rewards = torch.tensor([0.1, 0.9, 0.4, 0.0, 3.0, -2.0, 1.0])
    expected = group_advantages(rewards, group_ids=ids, scale=scale)
    result = group_advantages(rewards, group_ids=ids, num_groups=5, scale=scale)
    torch.testing.assert_close(result.advantages, expected.advantages)
    for got, present in zip(result[1:], expected[1:], strict=True):
        torch.testing.assert_close(got[[0, 1, 3]], present)
    assert result.mean.isnan().tolist() == [False, False, True, False, True]
    assert result.degenerate.tolist() == [False, False, True, False, True]


def test_more_rows_than_a_program_takes_at_a_time():
    rewards = torch.randn(3000, generator=torch.Generator().manual_seed(4))
    ids = torch.arange(3000) % 2
    for groups in ({"group_size": 1500}, {"group_ids": ids}):
        got = group_advantages(rewards, **groups)
        exact = reference.group_advantages(rewards.double(), **groups)
        torch.testing.assert_close(got.advantages.double(), exact.advantages, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.std.double(), exact.std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero(scale):
    # 0.1 is not representable: the mean of such a group differs from its rewards in the last bit.
    rewards = torch.tensor([0.1] * 7 + [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    result = group_advantages(rewards, 7, scale=scale)
    assert result.degenerate.tolist() == [True, False]
    assert result.advantages[:7].tolist() == [0.0] * 7
    assert result.std[0] == 0
    assert result.advantages[7] > 0


def test_nearly_equal_rewards_do_not_explode():
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.1 + 1e-7])
    assert group_advantages(rewards, 4).advantages.abs().max() < 0.01


def test_rows_without_a_reward_are_left_out_of_everything():
    with_nan = group_advantages(torch.tensor([1.0, NAN, 3.0, 5.0, NAN, NAN, NAN, NAN]), 4)
    without = group_advantages(torch.tensor([1.0, 3.0, 5.0]), 3)
    torch.testing.assert_close(with_nan.advantages[[0, 2, 3]], without.advantages)
    assert with_nan.advantages[[1, 4, 5, 6, 7]].tolist() == [0.0] * 5
    assert with_nan.degenerate.tolist() == [False, True]
    assert with_nan.mean[1].isnan()


def test_one_scored_row_in_a_group_is_degenerate():
    result = group_advantages(torch.tensor([1.0, NAN, 0.0, 1.0]), 2, baseline="leave_one_out")
    assert result.advantages[:2].tolist() == [0.0, 0.0]
    assert result.degenerate.tolist() == [True, False]


def test_several_reward_functions():
    rewards = torch.tensor([[1.0, 10.0], [NAN, 20.0], [3.0, NAN], [NAN, NAN]])
    weighted = group_advantages(rewards, 4, reward_weights=torch.tensor([2.0, 0.1]))
    torch.testing.assert_close(weighted.advantages, group_advantages(torch.tensor([3.0, 2.0, 6.0, NAN]), 4).advantages)
    plain = group_advantages(rewards, 4)
    torch.testing.assert_close(plain.advantages, group_advantages(torch.tensor([11.0, 20.0, 3.0, NAN]), 4).advantages)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_a_group_of_one_is_compared_with_the_batch(baseline):
    rewards = [1.0, 2.0, 6.0]
    result = group_advantages(torch.tensor(rewards, dtype=torch.float64), 1, scale="batch", baseline=baseline)
    torch.testing.assert_close(result.advantages, by_hand([rewards], baseline=baseline))
    assert not result.degenerate.any()


def test_no_rewards():
    result = group_advantages(torch.empty(0), 4)
    assert [len(x) for x in result] == [0, 0, 0, 0]


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_reference_in_float64(dtype, scale, baseline):
    """Several reward functions with holes, a degenerate group, an unscored one; by size and by ragged, shuffled ids."""
    rng = torch.Generator().manual_seed(3)
    rewards = torch.randn(40, 3, generator=rng).to(dtype)
    rewards[torch.rand(40, 3, generator=rng) < 0.3] = NAN
    rewards[8:16] = 0.1
    rewards[16:24] = NAN
    options = {"reward_weights": torch.tensor([1.0, -0.5, 2.0]), "scale": scale, "baseline": baseline}
    ids = torch.cat([torch.tensor([7, 7, 3, 3, 3]), torch.randint(10, 14, (35,), generator=rng)])
    for groups in ({"group_size": 8}, {"group_ids": ids}):
        got = group_advantages(rewards, **groups, **options)
        exact = reference.group_advantages(rewards.double(), **groups, **options)
        for name, ours, expected in zip(got._fields, got, exact, strict=True):
            tolerance = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
            torch.testing.assert_close(
                ours.to(expected.dtype), expected, **tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert got.advantages.dtype == torch.float32


def test_columns_of_a_larger_table():
    table = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    strided = group_advantages(table[:, 1:4:2], 4)
    torch.testing.assert_close(strided, group_advantages(table[:, 1:4:2].contiguous(), 4))


@pytest.mark.parametrize(
    ("rewards", "arguments", "message"),
    [
        pytest.param([1.0, 2.0], {}, "either group_size or group_ids", id="no-groups"),
        pytest.param([1.0, 2.0, 3.0], {"group_size": 2}, "3 rewards do not divide into groups of 2", id="remainder"),
        pytest.param([1.0, 2.0], {"group_size": 1}, "group_size is 1.*nothing to compare", id="lone"),
        pytest.param([1.0, 2.0, 3.0], {"group_ids": torch.tensor([4, 4, 9])}, "group 9 has one row", id="lone-id"),
        pytest.param([1.0, math.inf], {"group_size": 2}, "must be finite", id="inf"),
        pytest.param([1.0, 2.0], {"group_size": 2, "scale": "std"}, "scale must be", id="scale"),
        pytest.param([1.0, 2.0], {"group_size": 2, "baseline": "median"}, "baseline must be", id="baseline"),
        pytest.param([1.0, 2.0], {"group_size": 2, "reward_weights": torch.ones(2)}, "reward_weights", id="weights"),
        pytest.param([1.0, 2.0], {"group_ids": torch.tensor([0])}, "2 integers, one per reward", id="ids"),
        pytest.param([1.0, 2.0], {"group_size": 2, "num_groups": 1}, "num_groups counts the groups of", id="number"),
        pytest.param(
            [1.0, 2.0], {"group_ids": torch.tensor([2, 2]), "num_groups": 2}, r"in \[0, 2\).*got 2 to 2", id="range"
        ),
    ],
)
def test_mistakes_are_named(rewards, arguments, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.tensor(rewards), **arguments)


def test_integer_rewards_are_refused():
    with pytest.raises(TypeError, match="rewards must be a floating-point tensor"):
        group_advantages(torch.tensor([1, 0]), 2)
