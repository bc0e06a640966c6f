"""`grpo_loss` and `group_advantages` against verl 0.9.1's formulas: where they are equal, and each difference of
docs/semantics.md.

verl is not imported (it needs ray and an inference engine): its formulas are written out by hand, in float64, after
`verl.trainer.ppo.core_algos`; each function here names the one that it stands for.

B sequences   T tokens   case: ragged completions with a hole, one fully masked (see loss_cases)
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from loss_cases import B, Case, T, make_case
from torch import Tensor

from fgrpo_kernels import CISPO, GMPO, SAPO, PPOClip, group_advantages, grpo_loss, token_weights

LOW, HIGH, DUAL = 0.2, 0.28, 3.0
C = make_case()
OLD, REF, MASK, ADV, FACTOR = C.old_logp_BT, C.ref_logp_BT, C.mask_BT, C.advantages_B[:, None], C.factor_BT
AGGREGATIONS = {  # verl's loss_agg_mode: the reduction here
    "token-mean": "bnpo",
    "token-sum": "dapo",
    "seq-mean-token-sum": "luspo",
    "seq-mean-token-sum-norm": "dr_grpo",
    "seq-mean-token-mean": "grpo",
}


def vanilla(logp: Tensor, old: Tensor, A: Tensor, dual: float = DUAL) -> Tensor:
    """compute_policy_loss_vanilla: PPO's clip, and the bound `clip_ratio_c` on the loss of negative advantages."""
    r = (logp - old).clamp(-20, 20).exp()
    loss = torch.maximum(-A * r, -A * r.clamp(1 - LOW, 1 + HIGH))
    return torch.where(A < 0, torch.minimum(loss, -A * dual), loss)


def gspo(logp: Tensor, old: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """compute_policy_loss_gspo: the value is the sequence's ratio, the slope goes to the token alone."""
    mean = ((logp - old) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    r = (mean.detach() + logp - logp.detach()).clamp(max=10).exp()
    return torch.maximum(-A * r, -A * r.clamp(1 - LOW, 1 + HIGH))


def sapo(logp: Tensor, old: Tensor, A: Tensor) -> Tensor:
    """compute_policy_loss_sapo."""
    r, tau = (logp - old).clamp(-20, 20).exp(), torch.where(A > 0, 1.0, 1.05).double()
    return -A * 4 / tau * torch.sigmoid(tau * (r - 1))


def cispo(logp: Tensor, old: Tensor, A: Tensor) -> Tensor:
    """compute_policy_loss_cispo."""
    return -(logp - old).clamp(-20, 20).exp().clamp(1 - LOW, 1 + HIGH).detach() * A * logp


def geo_mean(logp: Tensor, old: Tensor, A: Tensor, mask: Tensor, factor: Tensor | None = None) -> Tensor:
    """compute_policy_loss_geo_mean, which reduces by itself: a mean over all B sequences, whatever the mode."""
    x, sign, length = logp - old, A.sign(), mask.sum(1) + 1e-8
    held = sign * torch.minimum(sign * x, sign * x.clamp(-LOW, HIGH))
    loss = -(A * mask).sum(1) / length * ((held * mask).sum(1) / length).exp()
    if factor is not None:
        loss = loss * (((factor + 1e-10).log() * mask).sum(1) / length).exp()
    return loss.mean()


def low_var_kl(logp: Tensor, ref: Tensor) -> Tensor:
    """kl_penalty_forward, "low_var_kl" and "k3"."""
    d = (ref - logp).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)


def agg_loss(loss: Tensor, mask: Tensor, mode: str, *, batch_size: int | None = None) -> Tensor:
    """agg_loss; without `batch_size` (its `global_batch_size`) only the sequences with a token count."""
    sums, lengths = (loss * mask).sum(1), mask.sum(1)
    sequences = (lengths > 0).sum() if batch_size is None else batch_size
    return {
        "token-mean": sums.sum() / mask.sum(),
        "token-sum": sums.sum(),
        "seq-mean-token-sum": sums.sum() / sequences,
        "seq-mean-token-sum-norm": sums.sum() / sequences / T,
        "seq-mean-token-mean": (sums / (lengths + 1e-8)).sum() / sequences,
    }[mode]


def weights_like(mode: str, mask: Tensor, **normalisers: float) -> Tensor:
    """Our weights for a mode of verl; fully masked sequences are left out unless `num_sequences` is given."""
    defaults = {"num_sequences": mask.any(1).sum(), "num_tokens": 1.0 if mode == "token-sum" else None}
    return token_weights(mask, AGGREGATIONS[mode], **defaults | normalisers).double()


def results(case: Case, verl_loss, weights: Tensor, **options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradient in the logits: ours on the case, then those of `verl_loss(logp)`."""
    ours, theirs = (case.logits.clone().requires_grad_() for _ in range(2))
    defaults = {"old_logp": case.old_logp_BT, "ref_logp": case.ref_logp_BT, "mask": case.mask_BT}
    loss = grpo_loss(ours, case.targets_BT, case.advantages_B, weights, **defaults | options).loss
    expected = verl_loss(theirs.log_softmax(-1).gather(-1, case.targets_BT[..., None]).squeeze(-1))
    loss.backward()
    expected.backward()
    return loss.detach(), ours.grad, expected.detach(), theirs.grad


def close(x: Tensor, y: Tensor) -> bool:
    """To float32's rounding of the weights, the only float32 there is."""
    return torch.allclose(x, y, rtol=1e-6, atol=1e-6 * float(y.abs().max()))


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("name", ["vanilla", "gspo", "sapo", "cispo"])
def test_equal_with_the_right_arguments(name, mode):
    """Policy term, its importance factor (constant in a sequence), KL, and every aggregation."""
    factor = FACTOR[:, :1]
    policy, objective = {
        "vanilla": (lambda x: vanilla(x, OLD, ADV), PPOClip(LOW, HIGH, delta=DUAL)),
        "gspo": (lambda x: gspo(x, OLD, ADV, MASK), PPOClip(LOW, HIGH, level="sequence")),
        "sapo": (lambda x: sapo(x, OLD, ADV), SAPO(1.0, 1.05)),
        "cispo": (lambda x: cispo(x, OLD, ADV), CISPO(1 - LOW, 1 + HIGH)),
    }[name]

    def verl_loss(logp: Tensor) -> Tensor:
        return agg_loss(policy(logp) * factor, MASK, mode) + 0.04 * agg_loss(low_var_kl(logp, REF), MASK, mode)

    options = {"objective": objective, "policy_factor": factor, "beta": 0.04, "kl": "k3"}
    loss, grad, expected, expected_grad = results(C, verl_loss, weights_like(mode, MASK), **options)
    assert expected_grad.abs().max() > 0
    assert close(loss, expected)
    assert close(grad, expected_grad)


MEAN = weights_like("seq-mean-token-mean", MASK, num_sequences=B)
FAR, FARTHER, FARTHEST = OLD - 5, OLD - 15, OLD - 25
PER_TOKEN = ADV * (FACTOR + 0.1)


def mean(loss: Tensor) -> Tensor:
    return agg_loss(loss, MASK, "seq-mean-token-mean", batch_size=B)


PPO, GEO = {"objective": PPOClip(LOW, HIGH)}, {"objective": GMPO(LOW, HIGH)}
GSPO, GPG = {"objective": PPOClip(LOW, HIGH, level="sequence")}, {"objective": CISPO(), "old_logp": None}
K3 = {"ref_logp": REF + 5, "beta": 1.0}
CASES = {  # verl's loss, our options, and whether loss and gradient are equal
    "fully masked sequences count": (lambda x: mean(cispo(x, OLD, ADV)), {"objective": CISPO(0.8, 1.28)}, (True, True)),
    "gpg": (lambda x: mean(-x * ADV), GPG, (True, True)),
    "geo_mean": (lambda x: geo_mean(x, OLD, ADV, MASK), GEO, (True, True)),
    "geo_mean, A per token": (lambda x: geo_mean(x, OLD, PER_TOKEN, MASK), GEO | {"A": PER_TOKEN}, (True, True)),
    "geo_mean, is": (
        lambda x: geo_mean(x, OLD, ADV, MASK, FACTOR),
        GEO | {"policy_factor": FACTOR},
        (False, False),
    ),
    "gspo, factor": (lambda x: mean(gspo(x, OLD, ADV, MASK) * FACTOR), GSPO | {"policy_factor": FACTOR}, (True, False)),
    "gspo over e^10": (lambda x: mean(gspo(x, FARTHER, ADV, MASK)), GSPO | {"old_logp": FARTHER}, (False, False)),
    "delta 1.1": (lambda x: mean(vanilla(x, OLD, ADV, 1.1)), {"objective": PPOClip(LOW, HIGH, 1.1)}, (False, False)),
    "no dual clip": (lambda x: mean(vanilla(x, FAR, ADV)), PPO | {"old_logp": FAR}, (False, False)),
    "over e^20": (lambda x: mean(vanilla(x, FARTHEST, ADV, 1e30)), PPO | {"old_logp": FARTHEST}, (False, False)),
    "k3 over 10": (lambda x: mean(low_var_kl(x, REF + 5) - x * ADV), GPG | K3, (False, False)),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_or_a_documented_difference(name):
    verl_loss, options, same = CASES[name]
    case = replace(C, advantages_B=options.get("A", C.advantages_B))
    options = {k: v for k, v in options.items() if k != "A"}
    loss, grad, expected, expected_grad = results(case, verl_loss, MEAN, **options)
    assert grad.abs().max() > 0
    assert (close(loss, expected), close(grad, expected_grad)) == same


def verl_advantages(rewards: Tensor) -> Tensor:
    """compute_grpo_outcome_advantage, for one group."""
    mean, std = (rewards.mean(), rewards.std()) if len(rewards) > 1 else (0.0, 1.0)
    return (rewards - mean) / (std + 1e-6)


def test_advantages():
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.25]).double()
    verl = verl_advantages(rewards)
    assert torch.allclose(group_advantages(rewards, 4, eps=1e-6).advantages, verl, rtol=1e-12)
    assert not torch.allclose(group_advantages(rewards, 4).advantages, verl, rtol=1e-5)  # eps is 1e-4
    rloo = (rewards - rewards.mean()) * 4 / 3  # compute_rloo_outcome_advantage
    ours = group_advantages(rewards, 4, scale="none", baseline="leave_one_out").advantages
    assert torch.allclose(ours, rloo, rtol=1e-12)
    equal = torch.full((7,), 0.7)
    assert verl_advantages(equal).abs().max() > 0.01  # a rounding error over 1e-6
    assert (group_advantages(equal, 7).advantages == 0).all()
    assert torch.allclose(verl_advantages(rewards[1:2]), rewards[1:2], rtol=1e-5)  # the raw reward
    with pytest.raises(ValueError, match="group_size is 1"):
        group_advantages(rewards[1:2], 1)
