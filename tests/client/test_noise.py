"""A private delta: no longer than the clip, under noise of the size that was asked for, from nobody's seed."""

import pytest
import torch

from fgrpo.client.noise import private
from fgrpo.config import PrivacyConfig

SIZE = 200_000


@pytest.mark.parametrize("length", [pytest.param(0.1, id="short"), pytest.param(50.0, id="long")])
def test_a_delta_is_clipped_and_gets_noise(length):
    direction = torch.randn(SIZE)
    delta_P = length * direction / direction.norm()
    config = PrivacyConfig(clip=2.0, noise=0.01)
    noised = private(delta_P, config)
    signal = torch.dot(noised, direction / direction.norm())
    assert signal.item() == pytest.approx(min(length, 2.0), abs=5 * 0.02)
    noise_P = noised - delta_P * min(1, 2.0 / length)
    assert noise_P.std().item() == pytest.approx(0.02, rel=0.01)


def test_the_noise_follows_from_nothing_that_others_know():
    config = PrivacyConfig(clip=1.0, noise=1.0)
    outcomes = []
    for _ in range(2):
        torch.manual_seed(0)
        outcomes.append(private(torch.zeros(100), config))
    assert not torch.equal(*outcomes)


def test_the_given_delta_stays_as_it_is_and_nothing_at_all_is_only_noise():
    delta_P = torch.zeros(1000)
    assert private(delta_P, PrivacyConfig(clip=1.0, noise=1.0)).std() > 0.9
    assert not delta_P.any()


def test_what_diverged_stays_so():
    delta_P = torch.ones(10)
    delta_P[3] = float("nan")
    assert private(delta_P, PrivacyConfig(clip=1.0, noise=1.0)).isnan().any()
