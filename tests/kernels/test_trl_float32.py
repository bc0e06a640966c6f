"""TRL's own loss and `grpo_loss` in float32: with TRITON_INTERPRET=1 or on a GPU, the Triton kernels."""

import dataclasses

import needs_trl  # noqa: F401 - skips without TRL 1.16
import pytest
import torch
from trl_harness import (
    FLOAT32_RUN,
    KLS,
    B,
    T,
    compare,
    make_batch,
    objective_of,
    our_result,
    trl_result,
    weights_of,
)

from fgrpo_kernels import grpo_loss

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize(
    ("loss_type", "level"),
    [("dapo", "token"), ("grpo", "sequence"), ("cispo", "token"), ("sapo", "token"), ("vespo", "token")],
)
def test_kernels(loss_type, level, kl):
    """Every objective with every KL."""
    trl_options, options = KLS[kl]
    compare(make_batch(), loss_type, trl_options, level=level, runs=[FLOAT32_RUN], **options)


@pytest.mark.parametrize("sign", [-1, 1])
def test_log_ratios_past_float32_stay_finite(sign):
    """`e^100` is inf in float32. TRL's gradient is infinite or NaN, ours is 0 there and TRL's own elsewhere."""
    batch = make_batch("full")
    old_logp = batch.old_logp.clone()
    far = 2 if sign > 0 else 3
    assert batch.advantages[far] * sign > 0
    old_logp[far, 1] -= 100
    batch = dataclasses.replace(batch, old_logp=old_logp)
    theirs = trl_result(batch, "grpo", dtype=torch.float32)
    assert not theirs.gradient[far, 1].isfinite().any()

    ours = our_result(grpo_loss, batch, weights_of(batch, "grpo"), dtype=torch.float32, objective=objective_of("grpo"))
    assert ours.loss.isfinite()
    assert ours.gradient[far, 1].eq(0).all()
    elsewhere = torch.ones(B, T, dtype=torch.bool)
    elsewhere[far, 1] = False
    torch.testing.assert_close(ours.gradient[elsewhere], theirs.gradient[elsewhere], rtol=1e-5, atol=1e-7)


def test_a_small_kl_keeps_its_digits():
    """At `d = 2e-4`, `exp(d) - d - 1` in float32 is one rounding error; `expm1(d) - d` is right."""
    batch = make_batch("full", old=False)
    logp, _ = batch.logp_and_entropy(batch.logits)
    batch = dataclasses.replace(batch, ref_logp=logp + 2e-4, advantages=torch.zeros(B).double())
    exact = 2e-8 + 2e-4**3 / 6
    theirs = trl_result(batch, "dapo", dtype=torch.float32, beta=1.0, use_bias_correction_kl=False)
    ours = our_result(grpo_loss, batch, weights_of(batch, "dapo"), dtype=torch.float32, beta=1.0)
    assert abs(theirs.loss.item() - exact) > 0.1 * exact
    assert ours.loss.item() == pytest.approx(exact, rel=0.01)
