"""What people pass by mistake: the error names the argument and what to do instead."""

import pytest
import torch
from op_inputs import MASK, B, H, T, V, arguments

import fgrpo_kernels
from fgrpo_kernels import (
    checks,
    group_advantages,
    grpo_loss,
    importance_weights,
    linear_grpo_loss,
    linear_token_logprobs,
    merge_token_stats,
    partial_token_stats,
    token_logprobs,
    token_weights,
)

PARTS = [partial_token_stats(**arguments(partial_token_stats))]
TENSORS = [
    pytest.param(op, name, id=f"{op.__name__}-{name}")
    for op in (
        *(token_logprobs, linear_token_logprobs, partial_token_stats, grpo_loss, linear_grpo_loss),
        *(group_advantages, token_weights, importance_weights),
    )
    for name, x in arguments(op).items()
    if isinstance(x, torch.Tensor)
]


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_what_is_no_tensor(op, name):
    right = arguments(op)
    cases = [
        (right[name].numpy(), "got ndarray; convert it with torch.as_tensor"),
        (right[name].tolist(), "got list; convert it with torch.tensor"),
        (torch.nn.Linear(H, V), "got Linear; pass its .weight"),
        (group_advantages(torch.rand(4), 2), "got GroupAdvantages; pass its .advantages"),
    ]
    for wrong, message in cases:
        with pytest.raises(TypeError, match=rf"{op.__name__}: {name} must be a tensor, {message}"):
            op(**right | {name: wrong})


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_another_device(op, name):
    right = arguments(op)
    if op is token_weights:
        pytest.skip("takes one tensor")
    with pytest.raises(
        TypeError, match=rf"^{op.__name__}: \w+ is on (meta|cpu) but \w+ is on (meta|cpu); move it with"
    ):
        op(**right | {name: right[name].to("meta")})


@pytest.mark.parametrize("op", [grpo_loss, linear_grpo_loss])
def test_a_mask_is_no_weights(op):
    for dtype in (torch.bool, torch.int64, torch.uint8):
        with pytest.raises(TypeError, match=rf"{op.__name__}: weights must be .*got {dtype}.*token_weights\(mask"):
            op(**arguments(op) | {"weights": MASK.to(dtype)})


@pytest.mark.parametrize("op", [grpo_loss, linear_grpo_loss])
def test_a_mask_in_floating_point_is_warned_of_once(op, recwarn):
    checks._warn_of_a_mask.cache_clear()
    for weights in (token_weights(MASK), torch.eye(3)[:2] * torch.tensor([[1.0], [0.0]])):
        op(**arguments(op) | {"weights": weights})
    assert not [w for w in recwarn if "token_weights" in str(w.message)], "weights that are no mask, and a single row"
    for _ in range(2):
        op(**arguments(op) | {"weights": MASK})
    found = [w for w in recwarn if "token_weights" in str(w.message)]
    assert len(found) == 1
    assert found[0].filename == __file__


@pytest.mark.parametrize("name", ["old_logp", "ref_logp"])
@pytest.mark.parametrize("op", [grpo_loss, linear_grpo_loss])
def test_probabilities_are_no_logprobs(op, name):
    right = arguments(op)
    for wrong in (right[name].exp(), -right[name]):
        with pytest.raises(ValueError, match=rf"{op.__name__}: {name} must be log-probabilities, which are at most 0"):
            op(**right | {name: wrong})
    op(**right | {name: torch.where(MASK == 0, 5.0, right[name])})  # nobody reads those
    op(**right | {name: torch.zeros(B, T)})


@pytest.mark.parametrize(
    "op", [token_logprobs, linear_token_logprobs, partial_token_stats, grpo_loss, linear_grpo_loss]
)
def test_token_ids_are_int64(op):
    right = arguments(op)
    for dtype in (torch.int32, torch.float32):
        with pytest.raises(TypeError, match=rf"{op.__name__}: targets must be int64 token ids, got {dtype}.*long\(\)"):
            op(**right | {"targets": right["targets"].to(dtype)})


def test_a_single_shard_is_given_as_a_list():
    merge_token_stats(PARTS)
    with pytest.raises(TypeError, match="parts must be a list"):
        merge_token_stats(PARTS[0])


def test_dir_shows_the_public_names():
    assert set(dir(fgrpo_kernels)) == set(fgrpo_kernels.__all__)
    assert all(hasattr(fgrpo_kernels, name) for name in dir(fgrpo_kernels))
