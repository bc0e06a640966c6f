import pytest
import torch

from fgrpo_kernels import token_weights

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("reduction", "arguments", "expected"),
    [
        pytest.param("grpo", {}, [[1 / 9, 1 / 9, 1 / 9, 0], [1 / 3, 0, 0, 0]], id="grpo"),
        pytest.param("grpo", {"num_sequences": 2}, [[1 / 6, 1 / 6, 1 / 6, 0], [1 / 2, 0, 0, 0]], id="grpo-as-verl"),
        pytest.param("bnpo", {}, [[1 / 4, 1 / 4, 1 / 4, 0], [1 / 4, 0, 0, 0]], id="bnpo"),
        pytest.param("dr_grpo", {}, [[1 / 12, 1 / 12, 1 / 12, 0], [1 / 12, 0, 0, 0]], id="dr_grpo"),
        pytest.param("dr_grpo", {"max_length": 10}, [[1 / 30, 1 / 30, 1 / 30, 0], [1 / 30, 0, 0, 0]], id="dr_grpo-max"),
        pytest.param("dapo", {}, [[1 / 4, 1 / 4, 1 / 4, 0], [1 / 4, 0, 0, 0]], id="dapo"),
        pytest.param(
            "dapo", {"num_tokens": torch.tensor(8.0)}, [[1 / 8, 1 / 8, 1 / 8, 0], [1 / 8, 0, 0, 0]], id="dapo-dp"
        ),
        pytest.param("luspo", {}, [[1 / 3, 1 / 3, 1 / 3, 0], [1 / 3, 0, 0, 0]], id="luspo"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_weight_of_each_token(reduction, arguments, expected, dtype):
    weights = token_weights(MASK.to(dtype), reduction, **arguments)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([*expected, [0.0] * 4]))


@pytest.mark.parametrize("reduction", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
def test_all_masked_is_zero_not_nan(reduction):
    assert token_weights(torch.zeros(2, 3, dtype=torch.bool), reduction).tolist() == [[0.0] * 3] * 2


def test_the_same_facts_may_go_to_every_reduction():
    facts = {"num_tokens": 8, "num_sequences": 6, "max_length": 5}
    totals = {r: float(token_weights(MASK, r, **facts).sum()) for r in ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"]}
    assert totals == pytest.approx({"grpo": 2 / 6, "bnpo": 1, "dr_grpo": 4 / 30, "dapo": 4 / 8, "luspo": 4 / 6})


@pytest.mark.parametrize(
    ("mask", "reduction", "arguments", "message"),
    [
        pytest.param(MASK, "mean", {}, "reduction must be one of grpo", id="unknown"),
        pytest.param(MASK, "dapo", {"num_tokens": 0}, "num_tokens must be positive", id="zero"),
        pytest.param(MASK[0], "dapo", {}, r"mask must be \[B, T\], got \[4\]", id="shape"),
    ],
)
def test_mistakes_are_named(mask, reduction, arguments, message):
    with pytest.raises(ValueError, match=message):
        token_weights(mask, reduction, **arguments)


def test_a_divisor_is_that_of_the_loss():
    for reduction in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo"):
        whole = token_weights(MASK, reduction)
        torch.testing.assert_close(token_weights(MASK, reduction, divisor=4), whole / 4)
    with pytest.raises(ValueError, match="divisor must be positive, got 0"):
        token_weights(MASK, divisor=0)
