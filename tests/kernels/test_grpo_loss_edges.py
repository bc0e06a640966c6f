"""`grpo_loss` where there is nothing to learn from, where inputs are hostile, and where the caller is wrong."""

import pytest
import torch
from loss_cases import OPS, B, T, V, arguments_of, loss_and_gradient, make_case

from fgrpo_kernels import PPOClip, grpo_loss, token_weights


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_rows_of_weight_zero_add_exactly_zero(op, level, poison):
    case = make_case()
    options = {"objective": PPOClip(level=level), "beta": 0.1, "entropy_coef": 0.1}
    clean = arguments_of(case, ref_logp=case.ref_logp_BT, policy_factor=case.factor_BT)
    expected = loss_and_gradient(op, **clean, **options)
    off = ~case.mask_BT
    advantages = case.advantages_B[:, None].expand(B, T).masked_fill(off, poison)
    with torch.no_grad():
        logits = case.logits.clone()
        logits[off] = poison
    poisoned = {name: clean[name].masked_fill(off, poison) for name in ("old_logp", "ref_logp", "policy_factor")}
    poisoned |= {"advantages": advantages, "logits": logits.requires_grad_()}
    poisoned |= {"targets": case.targets_BT.masked_fill(off, -100), "weights": clean["weights"]}
    got = loss_and_gradient(op, **poisoned, **options)
    torch.testing.assert_close(got, expected)
    assert got[1][off].eq(0).all()


def test_a_token_of_weight_zero_inside_the_mask_shapes_its_sequence_ratio_only():
    case = make_case()
    weights = token_weights(case.mask_BT).double()
    weights[0, 1] = 0
    arguments = arguments_of(case, weights=weights, mask=case.mask_BT, objective=PPOClip(level="sequence"))
    advantages = case.advantages_B[:, None].repeat(1, T)
    _, gradient, _ = loss_and_gradient(grpo_loss, **arguments)
    assert gradient[0, 1].abs().max() > 0

    advantages[0, 1] = torch.nan  # its own term is never read
    arguments["logits"].grad = None
    _, again, _ = loss_and_gradient(grpo_loss, **arguments | {"advantages": advantages})
    torch.testing.assert_close(again, gradient)

    logits = case.logits.detach().requires_grad_()
    logp = logits.log_softmax(-1).gather(-1, case.targets_BT[..., None]).squeeze(-1)
    mask = case.mask_BT.double()
    ratio = (((logp - case.old_logp_BT) * mask).sum(1) / mask.sum(1).clamp(min=1)).exp()[:, None]
    A = case.advantages_B[:, None]
    (weights * -torch.min(ratio * A, ratio.clamp(0.8, 1.2) * A)).sum().backward()
    torch.testing.assert_close(gradient, logits.grad)


def test_a_kl_times_the_sequence_ratio_keeps_the_whole_sequence_without_any_advantage():
    case = make_case()
    weights = token_weights(case.mask_BT).double()
    weights[:, 1] = 0
    arguments = arguments_of(case, weights=weights, mask=case.mask_BT, objective=PPOClip(level="sequence"))
    arguments |= {"advantages": torch.zeros(B), "ref_logp": case.ref_logp_BT, "beta": 0.5, "kl": "k3_is"}
    loss, gradient, _ = loss_and_gradient(grpo_loss, **arguments)

    logits = case.logits.detach().requires_grad_()
    logp = logits.log_softmax(-1).gather(-1, case.targets_BT[..., None]).squeeze(-1)
    mask, d = case.mask_BT.double(), case.ref_logp_BT - logp
    ratio = (((logp - case.old_logp_BT) * mask).sum(1) / mask.sum(1).clamp(min=1)).exp()[:, None]
    expected = (weights * 0.5 * ratio * (d.exp() - d - 1)).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, logits.grad)
    assert gradient[:, 1][case.mask_BT[:, 1]].abs().amax(-1).gt(0).all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("what", ["weights", "advantages"])
def test_nothing_informative_is_zero_with_zero_gradient(op, level, what):
    case = make_case()
    arguments = arguments_of(case, objective=PPOClip(level=level))
    arguments[what] = torch.zeros_like(arguments[what])
    loss, gradient, metrics = loss_and_gradient(op, **arguments)
    assert loss == 0
    assert gradient.eq(0).all()
    assert {name: float(x) for name, x in metrics.items()} == {
        "clip_ratio/low": 0, "clip_ratio/high": 0, "ratio/mean": 1, "ratio/min": 1, "ratio/max": 1, "entropy": 0,
        "informative": 0,
    }  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op):
    logits = torch.empty(0, V, requires_grad=True)
    loss, gradient, _ = loss_and_gradient(
        op, logits=logits, targets=torch.empty(0, dtype=torch.int64), advantages=torch.empty(0), weights=torch.empty(0)
    )
    assert loss == 0
    assert gradient.shape == (0, V)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(("logit", "old_logp"), [(0.0, -200.0), (-200.0, 0.0)], ids=["large", "small"])
def test_ratios_beyond_float32_give_finite_gradients(advantage, logit, old_logp):
    logits, targets = torch.randn(3, V, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3])
    logits[torch.arange(3), targets] = logit
    loss, gradient, _ = loss_and_gradient(
        grpo_loss,
        logits=logits.requires_grad_(),
        targets=targets,
        advantages=torch.full((3,), advantage),
        weights=torch.full((3,), 1 / 3),
        old_logp=torch.full((3,), old_logp),
    )
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_backward_twice():
    arguments = arguments_of(make_case())
    loss, _ = grpo_loss(**arguments)
    loss.backward(retain_graph=True)
    once = arguments["logits"].grad.clone()
    loss.backward()
    torch.testing.assert_close(arguments["logits"].grad, 2 * once)


PACKED = {"logits": torch.zeros(4, 5), "targets": torch.zeros(4, dtype=torch.int64), "weights": torch.ones(4)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"objective": "ppo"}, TypeError, "such as PPOClip", id="objective"),
        pytest.param({"kl": "k4"}, ValueError, "kl must be one of k1, k2, k3, k3_is, got 'k4'", id="kl"),
        pytest.param({"beta": 0.1}, ValueError, "needs ref_logp", id="beta"),
        pytest.param({"weights": torch.ones(3)}, ValueError, r"weights must have .* \[4\], got \[3\]", id="weights"),
        pytest.param({"old_logp": torch.ones(4, 1)}, ValueError, "old_logp must have one entry", id="old"),
        pytest.param({"advantages": torch.ones(2)}, ValueError, "advantages must have one entry", id="advantages"),
        pytest.param({"objective": PPOClip(level="sequence")}, ValueError, "need sequence_ids", id="sequence"),
        pytest.param(
            {"sequence_ids": torch.tensor([0, 0, 1, 2]), "advantages": torch.ones(2)},
            ValueError, r"sequence_ids are 0 to 2 but advantages are \[2\]", id="ids-range",
        ),
        pytest.param({"targets": torch.tensor([0, 1, 2, 5])}, ValueError, r"in \[0, 5\), got 0 to 5", id="targets"),
        pytest.param({"vocab_size": 6}, ValueError, "vocab_size must be in 1 to 5", id="vocab-size"),
        pytest.param({"temperature": -1.0}, ValueError, "temperature must be a positive", id="temperature"),
        pytest.param({"logits": torch.zeros(4, 1, 1, 5)}, ValueError, r"padded\) or \[N\]", id="layout"),
    ],
)  # fmt: skip
def test_mistakes_are_named(change, error, message):
    with pytest.raises(error, match=message):
        grpo_loss(**PACKED | {"advantages": torch.ones(4)} | change)


@pytest.mark.parametrize("options", [{"low": -0.1}, {"delta": 0.0}, {"level": "word"}], ids=str)
def test_objective_refuses_nonsense(options):
    with pytest.raises(ValueError, match="PPOClip: "):
        PPOClip(**options)
