"""The objectives beside PPOClip, against their formulas written out by hand on `[B, T]`, and their Triton forms."""

import math

import pytest
import torch
from loss_cases import B, T, V, make_case

from fgrpo_kernels import CISPO, GMPO, SAPO, VESPO, grpo_loss, reference, token_weights


def cispo(logp, old, A, mask):
    return -torch.exp(logp - old).detach().clamp(0.9, 1.2) * A * logp


def sapo(logp, old, A, mask):
    tau = torch.where(A > 0, 1.0, 1.05).double()
    return -(4 / tau) / (1 + torch.exp(-tau * (torch.exp(logp - old) - 1))) * A


def vespo(logp, old, A, mask):
    log_weight = ((logp - old).clamp(-20, 20) * mask).sum(1, keepdim=True).detach().clamp(math.log(1e-8), 20)
    k, lam = torch.where(A >= 0, 2.0, 3.0), torch.where(A >= 0, 3.0, 2.0)
    return -torch.exp(lam + k * log_weight - lam * log_weight.exp()) * A * logp


def gmpo(logp, old, A, mask):
    sign = A.sign()
    log_ratio = sign * torch.minimum(sign * (logp - old), sign * (logp - old).clamp(-0.2, 0.25))
    return -A * torch.exp((log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1))


OBJECTIVES = [
    pytest.param(CISPO(0.9, 1.2), cispo, id="cispo"),
    pytest.param(SAPO(), sapo, id="sapo"),
    pytest.param(VESPO(), vespo, id="vespo"),
    pytest.param(GMPO(0.2, 0.25), gmpo, id="gmpo"),
]
OPTIONS = {"beta": 0.1, "kl": "k3", "entropy_coef": 0.01}


def loss_and_gradient(op, case, objective, dtype=torch.float64, **changes):
    logits = case.logits.detach().to(dtype).requires_grad_()
    arguments = {
        "targets": case.targets_BT,
        "advantages": case.advantages_B,
        "weights": token_weights(case.mask_BT, "grpo"),
        "old_logp": case.old_logp_BT,
        "ref_logp": case.ref_logp_BT,
        "policy_factor": case.factor_BT,
        "objective": objective,
    }
    loss, metrics = op(logits, **arguments | OPTIONS | changes)
    loss.backward()
    return loss.detach(), logits.grad, metrics


@pytest.mark.parametrize("op", [grpo_loss, reference.grpo_loss], ids=["op", "reference"])
@pytest.mark.parametrize(("objective", "formula"), OBJECTIVES)
def test_formula(op, objective, formula):
    case = make_case()
    loss, gradient, _ = loss_and_gradient(op, case, objective)

    logits = case.logits.detach().requires_grad_()
    log_probs = logits.log_softmax(-1)
    logp = log_probs.gather(-1, case.targets_BT[..., None]).squeeze(-1)
    mask = case.mask_BT.double()
    d = case.ref_logp_BT - logp
    terms = case.factor_BT * formula(logp, case.old_logp_BT, case.advantages_B[:, None].expand(B, T), mask)
    terms = terms + 0.1 * (d.exp() - d - 1) + 0.01 * (log_probs.exp() * log_probs).sum(-1)
    expected = ((terms * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-7)  # the weights are float32
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("objective", "formula"), OBJECTIVES)
def test_float32_and_metrics(objective, formula):
    case = make_case()
    exact = loss_and_gradient(reference.grpo_loss, case, objective, kl="k3_is")
    ours = loss_and_gradient(grpo_loss, case, objective, torch.float32, kl="k3_is")
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours[1].double(), exact[1], rtol=1e-4, atol=1e-7)
    assert ours[2].keys() == exact[2].keys()
    for name, expected in exact[2].items():
        torch.testing.assert_close(ours[2][name].double(), expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("objective", [CISPO(0.9, 1.2), GMPO(0.2, 0.25)], ids=["cispo", "gmpo"])
def test_bounded_tokens_are_counted(objective):
    case = make_case()
    metrics = loss_and_gradient(grpo_loss, case, objective)[2]
    assert 0 < metrics["clip_ratio/low"] < 1
    assert 0 < metrics["clip_ratio/high"] < 1


@pytest.mark.parametrize(("logit", "old_logp"), [(0.0, -200.0), (-200.0, 0.0)], ids=["large", "small"])
@pytest.mark.parametrize(("objective", "formula"), OBJECTIVES)
def test_ratios_beyond_float32_stay_finite(objective, formula, logit, old_logp):
    logits, targets = torch.randn(2, V, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    logits[torch.arange(2), targets] = logit
    logits.requires_grad_()
    advantages, ids = torch.tensor([1.0, -1.0]), torch.tensor([0, 1])
    loss, _ = grpo_loss(
        logits, targets, advantages, torch.full((2,), 0.5),
        old_logp=torch.full((2,), old_logp), sequence_ids=ids, objective=objective,
    )  # fmt: skip
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: CISPO(low=2.0, high=1.0), "CISPO: low and high", id="cispo"),
        pytest.param(lambda: SAPO(tau_positive=0.0), "SAPO: both tau", id="sapo"),
        pytest.param(lambda: VESPO(k_positive=-1.0), "VESPO: k and lambda", id="vespo"),
        pytest.param(lambda: GMPO(low=-0.1), "GMPO: low and high", id="gmpo"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
