import math

import pytest
import torch

from fgrpo_kernels import importance_weights, off_policy_mask, top_entropy_mask

OLD = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -1.0, 9.0]])
SAMPLING = torch.tensor([[-1.5, -1.0, -2.5], [-1.0, -3.0, -9.0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
E = math.exp


@pytest.mark.parametrize(
    ("mode", "level", "expected"),
    [
        pytest.param("truncate", "token", [[E(0.5), E(-1), 3.0], [1.0, 3.0, 1.0]], id="token-truncate"),
        pytest.param("mask", "token", [[E(0.5), E(-1), 0.0], [1.0, 0.0, 1.0]], id="token-mask"),
        pytest.param("truncate", "sequence", [[3.0], [3.0]], id="sequence-truncate"),
        pytest.param("mask", "sequence", [[0.0], [0.0]], id="sequence-mask"),
    ],
)
def test_importance_weights(mode, level, expected):
    got = importance_weights(OLD, SAMPLING, MASK, mode=mode, level=level, cap=3.0)
    torch.testing.assert_close(got, torch.tensor(expected))


def test_a_floor_and_unknown_log_probabilities():
    sampling = SAMPLING.masked_fill(torch.tensor([[1, 0, 0], [0, 0, 0]]).bool(), torch.nan)
    truncated = importance_weights(OLD, sampling, MASK, cap=3.0, floor=0.5)
    torch.testing.assert_close(truncated, torch.tensor([[1.0, 0.5, 3.0], [1.0, 3.0, 1.0]]))
    masked = importance_weights(OLD, sampling, MASK, mode="mask", cap=3.0, floor=0.5)
    torch.testing.assert_close(masked, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]))
    kept = off_policy_mask(OLD, sampling, torch.tensor([-1.0, -1.0]), MASK, threshold=0.1)
    assert kept.tolist() == [[1.0], [1.0]]  # mean distances (1 - 2) / 3 and -2 / 2


def test_a_sequence_weight_is_the_product_of_its_tokens():
    got = importance_weights(OLD, SAMPLING, MASK, level="sequence", cap=100.0)
    torch.testing.assert_close(got, torch.tensor([[E(0.5 - 1 + 2)], [E(2)]]))


def test_off_policy_mask_spares_good_completions_and_close_ones():
    logp = torch.tensor([[-2.0, -2.0], [-2.0, -2.0], [-1.0, 7.0], [-2.0, -1.2]])
    sampling = torch.full((4, 2), -1.0)
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]])
    advantages = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    got = off_policy_mask(logp, sampling, advantages, mask, threshold=0.7)
    assert got.tolist() == [[0.0], [1.0], [1.0], [1.0]]  # mean distances 1, 1, 0 and 0.6


def test_top_entropy_mask_keeps_the_fraction_of_the_masked_tokens():
    entropy = torch.arange(12.0).view(3, 4)
    mask = torch.ones(3, 4)
    mask[2, 3] = 0  # the highest entropy does not count
    assert top_entropy_mask(entropy, mask, fraction=0.2).nonzero().tolist() == [[2, 0], [2, 1], [2, 2]]
    assert top_entropy_mask(entropy, mask, fraction=1.0).equal(mask)
    assert top_entropy_mask(entropy, torch.zeros(3, 4)).eq(0).all()


def test_top_entropy_mask_is_the_quantile():
    entropy = torch.rand(7, 9, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(1)) < 0.7
    expected = (entropy >= entropy[mask].quantile(0.7)) & mask
    assert top_entropy_mask(entropy, mask, fraction=0.3).equal(expected.float())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: importance_weights(OLD, SAMPLING, MASK, mode="clip"), "mode must be one of", id="mode"),
        pytest.param(lambda: importance_weights(OLD, SAMPLING, MASK, level="row"), "level must be one of", id="level"),
        pytest.param(lambda: importance_weights(OLD, SAMPLING, MASK, cap=0.0), "cap must be a positive", id="cap"),
        pytest.param(lambda: importance_weights(OLD, SAMPLING, MASK, floor=4.0), "floor must be from 0", id="floor"),
        pytest.param(lambda: importance_weights(OLD[:1], SAMPLING, MASK), "old_logp must have one entry", id="shape"),
        pytest.param(
            lambda: off_policy_mask(OLD, OLD, torch.ones(3), MASK, threshold=1.0), r"advantages must be \[B\]", id="adv"
        ),
        pytest.param(lambda: top_entropy_mask(OLD, MASK, fraction=0.0), "fraction must be over 0", id="fraction"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
