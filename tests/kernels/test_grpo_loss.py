import dataclasses

import pytest
import torch
from loss_cases import OPS, B, T, V, arguments_of, loss_and_gradient, make_case, trl_loss

from fgrpo_kernels import PPOClip, grpo_loss, token_weights

REDUCTIONS = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"]


def packed(case, arguments, rows):
    """The same batch as rows `[N]` in the order `rows`, with sequence ids."""
    flat = {name: x.detach().flatten(0, 1)[rows] for name, x in arguments.items() if name not in ("advantages",)}
    flat["logits"] = flat["logits"].clone().requires_grad_()
    ids = torch.arange(B).repeat_interleave(T)[rows]
    return flat | {"advantages": case.advantages_B, "sequence_ids": ids}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_trl(op, reduction, level, beta):
    case = make_case()
    arguments = arguments_of(
        case, reduction, ref_logp=case.ref_logp_BT, beta=beta, objective=PPOClip(0.2, 0.28, level=level)
    )
    loss, gradient, _ = loss_and_gradient(op, **arguments)

    logits = case.logits.detach().requires_grad_()
    logp = logits.log_softmax(-1).gather(-1, case.targets_BT[..., None]).squeeze(-1)
    expected = trl_loss(logp, torch.zeros(()), case, reduction, level=level, beta=beta)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-7)  # the weights are float32
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("options", "trl_options"),
    [
        pytest.param({"delta": 1.5}, {"delta": 1.5}, id="delta"),
        pytest.param({"factor": True}, {"factor": True}, id="factor"),
        pytest.param({"factor": True, "beta": 0.1}, {"factor": True, "beta": 0.1}, id="factor-kl"),
        pytest.param({"kl": "k3_is", "beta": 0.1}, {"beta": 0.1, "bias_correction": True}, id="kl-bias-correction"),
        pytest.param({"entropy_coef": 0.02}, {"entropy_coef": 0.02}, id="entropy"),
        pytest.param({"temperature": 0.8}, {}, id="temperature"),
        pytest.param({"vocab_size": V - 4}, {}, id="vocab-size"),
    ],
)
def test_options(op, level, options, trl_options):
    case = make_case()
    options, trl_options = dict(options), dict(trl_options)
    factor = case.factor_BT if options.pop("factor", False) else None
    trl_options.pop("factor", None)
    vocab_size = options.get("vocab_size", V)
    case = dataclasses.replace(case, targets_BT=case.targets_BT.clamp(max=vocab_size - 1))
    objective = PPOClip(0.2, 0.28, delta=options.pop("delta", None), level=level)
    arguments = arguments_of(case, ref_logp=case.ref_logp_BT, policy_factor=factor, objective=objective, **options)
    loss, gradient, _ = loss_and_gradient(op, **arguments)

    logits = case.logits.detach().requires_grad_()
    log_probs = (logits[..., :vocab_size] / options.get("temperature", 1.0)).log_softmax(-1)
    logp = log_probs.gather(-1, case.targets_BT[..., None]).squeeze(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    expected = trl_loss(logp, entropy, case, "dapo", level=level, factor=factor, **trl_options)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-6, atol=1e-8)
    assert gradient[..., vocab_size:].eq(0).all()


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "k3_is"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.pytorch_path
def test_gradcheck(level, kl):
    case = make_case()
    arguments = arguments_of(case, "grpo", ref_logp=case.ref_logp_BT, policy_factor=case.factor_BT)
    arguments |= {"objective": PPOClip(0.2, 0.28, delta=1.5, level=level), "beta": 0.1, "kl": kl, "entropy_coef": 0.05}
    logits = arguments.pop("logits")
    assert torch.autograd.gradcheck(lambda x: grpo_loss(x, **arguments).loss, logits, fast_mode=True)


@pytest.mark.parametrize(
    ("kl", "formula"),
    [
        pytest.param("k1", lambda logp, ref: logp - ref, id="k1"),
        pytest.param("k2", lambda logp, ref: (logp - ref) ** 2 / 2, id="k2"),
        pytest.param("k3", lambda logp, ref: (ref - logp).exp() - (ref - logp) - 1, id="k3"),
    ],
)
def test_kl_estimators(kl, formula):
    case = make_case()
    weights = token_weights(case.mask_BT).double()
    arguments = arguments_of(case, ref_logp=case.ref_logp_BT, beta=2.0, kl=kl, policy_factor=torch.zeros(B, T))
    loss, gradient, _ = loss_and_gradient(grpo_loss, **arguments)
    logits = case.logits.detach().requires_grad_()
    logp = logits.log_softmax(-1).gather(-1, case.targets_BT[..., None]).squeeze(-1)
    expected = (weights * 2.0 * formula(logp, case.ref_logp_BT)).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, logits.grad)


def test_k3_keeps_its_digits_close_to_the_reference():
    """`exp(d) - d - 1` is 0 in float32 at d = 2e-4; its gradient `1 - exp(d)` has three digits."""
    logits = torch.zeros(1, 2, requires_grad=True)
    d = 2e-4
    ref = torch.tensor([-torch.log(torch.tensor(2.0)) + d])
    d = float(ref.double() + torch.log(torch.tensor(2.0, dtype=torch.float32)).double())  # as rounded to float32
    arguments = {"targets": torch.zeros(1, dtype=torch.int64), "advantages": torch.zeros(1), "weights": torch.ones(1)}
    loss, gradient, _ = loss_and_gradient(grpo_loss, logits=logits, ref_logp=ref, beta=1.0, **arguments)
    exact = torch.tensor(d, dtype=torch.float64)
    torch.testing.assert_close(loss.double(), torch.expm1(exact) - exact, rtol=2e-3, atol=0)
    torch.testing.assert_close(gradient[0, 0].double(), -torch.expm1(exact) / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_packed_rows_in_any_order_equal_padded_ones(op, level):
    case = make_case()
    arguments = arguments_of(case, "grpo", ref_logp=case.ref_logp_BT)
    options = {"objective": PPOClip(level=level), "beta": 0.1, "entropy_coef": 0.01}
    loss, gradient, metrics = loss_and_gradient(op, **arguments, **options)
    rows = case.mask_BT.flatten().nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(5))]
    flat = packed(case, arguments, rows)
    got_loss, got_gradient, got_metrics = loss_and_gradient(op, **flat, **options)
    torch.testing.assert_close(got_loss, loss)
    torch.testing.assert_close(got_gradient, gradient.flatten(0, 1)[rows])
    torch.testing.assert_close(got_metrics, metrics)

    flat["logits"].grad = None
    per_row = flat | {"advantages": case.advantages_B[flat["sequence_ids"]]}
    torch.testing.assert_close(loss_and_gradient(op, **per_row, **options)[1], got_gradient)


def test_advantages_per_token_and_upstream_gradient():
    case = make_case()
    arguments = arguments_of(case)
    _, gradient, _ = loss_and_gradient(grpo_loss, **arguments)
    arguments["logits"].grad = None
    loss, _ = grpo_loss(**arguments | {"advantages": case.advantages_B[:, None].expand(B, T)})
    (3 * loss).backward()
    torch.testing.assert_close(arguments["logits"].grad, 3 * gradient)


def test_without_old_logp_the_ratio_is_one():
    case = make_case()
    arguments = arguments_of(case, old_logp=None)
    _, gradient, metrics = loss_and_gradient(grpo_loss, **arguments)
    arguments["logits"].grad = None
    logits = case.logits.detach().requires_grad_()
    logp = logits.log_softmax(-1).gather(-1, case.targets_BT[..., None]).squeeze(-1)
    (-(arguments["weights"] * case.advantages_B[:, None] * logp).sum()).backward()
    torch.testing.assert_close(gradient, logits.grad)
    assert metrics["ratio/min"] == metrics["ratio/mean"] == metrics["ratio/max"] == 1


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_metrics(level):
    case = make_case()
    weights = token_weights(case.mask_BT, "grpo").double()
    arguments = arguments_of(case, "grpo", ref_logp=case.ref_logp_BT, objective=PPOClip(0.2, 0.28, level=level))
    metrics = grpo_loss(**arguments).metrics

    log_probs = case.logits.log_softmax(-1)
    logp = log_probs.gather(-1, case.targets_BT[..., None]).squeeze(-1)
    mask = case.mask_BT.double()
    log_ratio = logp - case.old_logp_BT
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(1) / mask.sum(1).clamp(min=1))[:, None].expand(B, T)
    ratio, d, A = log_ratio.exp(), case.ref_logp_BT - logp, case.advantages_B[:, None]
    counted = case.mask_BT & (A != 0)

    def mean(x):
        return (weights * x)[counted].sum() / weights[counted].sum()

    expected = {
        "clip_ratio/low": mean(((ratio < 0.8) & (A < 0)).double()),
        "clip_ratio/high": mean(((ratio > 1.28) & (A > 0)).double()),
        "ratio/mean": mean(ratio),
        "ratio/min": ratio[counted].min(),
        "ratio/max": ratio[counted].max(),
        "entropy": mean(-(log_probs.exp() * log_probs).sum(-1)),
        "informative": weights[counted].sum() / weights.sum(),
        "kl": mean(d.exp() - d - 1),
    }
    torch.testing.assert_close(metrics, expected)
    assert level == "sequence" or min(metrics["clip_ratio/low"], metrics["clip_ratio/high"]) > 0
    assert not any(x.requires_grad for x in metrics.values())
