"""`grpo_loss` in the dtypes that are trained in, against the specification in float64.

These take the Triton path on a GPU and under TRITON_INTERPRET=1, and the chunked PyTorch path otherwise.
"""

import dataclasses

import pytest
import torch
from loss_cases import B, T, V, make_case

from fgrpo_kernels import PPOClip, grpo_loss, reference, token_weights

N, WIDE = 18, 1301  # several tiles in every dtype, the last one not full


def wide_case(dtype):
    """Off policy enough for every clip regime, with holes, targets in the first and last columns, and one far ahead."""
    rng = torch.Generator().manual_seed(4)

    def randn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    logits = (3 * randn(N, WIDE)).to(dtype)
    targets = torch.randint(WIDE, (N,), generator=rng)
    targets[0], targets[1], targets[2] = 0, WIDE - 1, 1024  # 1024 begins a tile
    logits[3, targets[3]] = logits[3].max() + 20
    logp = reference.token_logprobs(logits.double(), targets).logp
    arguments = {
        "targets": targets,
        "advantages": torch.tensor([1.2, -0.8, 0.5, -0.3, 0.9, -1.5], dtype=torch.float64).repeat(3),
        "weights": torch.full((N,), 1 / N, dtype=torch.float64).index_fill(0, torch.tensor([5, 11]), 0.0),
        "old_logp": logp + 0.3 * randn(N),
        "ref_logp": logp + 0.2 * randn(N),
        "policy_factor": torch.rand(N, generator=rng, dtype=torch.float64) * 2,
        "sequence_ids": torch.arange(N) % 4,
    }
    sign, ratio = arguments["advantages"].sign(), (logp - arguments["old_logp"]).exp()
    regimes = {(int(s), int(r > 1.28) - int(r < 0.8)) for s, r in zip(sign, ratio, strict=True)}
    assert regimes >= {(s, side) for s in (-1, 1) for side in (-1, 0, 1)}, "a clip regime is missing from the case"
    return logits, arguments


def run(op, logits, arguments, upstream=1.0):
    leaf = logits.detach().clone().requires_grad_()
    loss, metrics = op(leaf, **arguments)
    (upstream * loss).backward()
    return loss.detach().double(), leaf.grad.double(), {name: x.double() for name, x in metrics.items()}


def in_dtype(arguments, dtype):
    return {k: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for k, x in arguments.items()}


def assert_within_budget(ours, plain, exact, dtype, what):
    """No further from the exact result than plain PyTorch in the same dtype, plus rounding."""
    budget = (plain - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (ours - exact).abs().max() <= budget, what


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        pytest.param(torch.float32, {}, id="float32"),
        pytest.param(torch.bfloat16, {}, id="bfloat16"),
        pytest.param(torch.float16, {"beta": 0.1}, id="float16"),
        pytest.param(torch.float32, {"beta": 0.1, "kl": "k1", "delta": 1.1}, id="k1-delta"),
        pytest.param(torch.float32, {"beta": 0.1, "kl": "k2", "temperature": 0.7}, id="k2-temperature"),
        pytest.param(torch.bfloat16, {"beta": 0.1, "kl": "k3", "entropy_coef": 0.02}, id="k3-entropy"),
        pytest.param(torch.float32, {"beta": 0.1, "kl": "k3_is", "vocab_size": 1200}, id="k3_is-vocabulary"),
    ],
)
def test_error_is_no_larger_than_plain_pytorch(dtype, level, options):
    logits, arguments = wide_case(dtype)
    options = dict(options)
    if "vocab_size" in options:
        arguments["targets"] = arguments["targets"] % options["vocab_size"]
        logits[:, options["vocab_size"] :] = torch.nan  # never read
    arguments |= {"objective": PPOClip(0.2, 0.28, options.pop("delta", None), level)} | options
    ours = run(grpo_loss, logits, in_dtype(arguments, torch.float32))
    plain = run(reference.grpo_loss, logits, in_dtype(arguments, torch.float32))
    # The same float32 constants for the exact result: their rounding is no error of the op.
    exact = run(reference.grpo_loss, logits.double(), in_dtype(in_dtype(arguments, torch.float32), torch.float64))
    assert_within_budget(ours[0], plain[0], exact[0], torch.float32, "loss")
    assert_within_budget(ours[1], plain[1], exact[1], dtype, "gradient")
    assert ours[2].keys() == exact[2].keys()
    for name in exact[2]:
        assert_within_budget(ours[2][name], plain[2][name], exact[2][name], torch.float32, name)
    assert ours[1][[5, 11]].eq(0).all() or level == "sequence"


def small_case():
    case = make_case(torch.float32)
    arguments = {
        "targets": case.targets_BT,
        "advantages": case.advantages_B,
        "weights": token_weights(case.mask_BT, "grpo"),
        "old_logp": case.old_logp_BT,
        "ref_logp": case.ref_logp_BT,
        "policy_factor": case.factor_BT,
        "beta": 0.1,
        "entropy_coef": 0.02,
    }
    return case, arguments


LEVELS = pytest.mark.parametrize("level", ["token", "sequence"])


@LEVELS
def test_layouts_agree(level):
    """Sliced, permuted, and packed rows in any order."""
    case, arguments = small_case()
    arguments["objective"] = PPOClip(level=level)
    logits = case.logits
    expected = run(grpo_loss, logits, arguments)

    whole = torch.full((B, T + 1, V), torch.nan)
    whole[:, :-1] = logits
    leaf = whole.requires_grad_()
    loss, _ = grpo_loss(leaf[:, :-1], **arguments)
    loss.backward()
    torch.testing.assert_close(leaf.grad[:, :-1].double(), expected[1], rtol=1e-5, atol=1e-8)
    assert leaf.grad[:, -1].eq(0).all()

    permuted = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    torch.testing.assert_close(run(grpo_loss, permuted, arguments), expected, rtol=1e-5, atol=1e-8)

    rows = case.mask_BT.flatten().nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(5))]
    packed = {k: x.flatten(0, 1)[rows] for k, x in arguments.items() if torch.is_tensor(x) and x.ndim == 2}
    packed |= {"sequence_ids": torch.arange(B).repeat_interleave(T)[rows]}
    got = run(grpo_loss, logits.flatten(0, 1)[rows], arguments | packed)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(got[1], expected[1].flatten(0, 1)[rows], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-5, atol=1e-8)


@LEVELS
def test_rows_of_weight_zero_add_exactly_zero_whatever_they_hold(level):
    case, arguments = small_case()
    arguments["objective"] = PPOClip(level=level)
    expected = run(grpo_loss, case.logits, arguments)
    off = ~case.mask_BT
    poisoned = arguments | {
        name: arguments[name].masked_fill(off, torch.nan) for name in ("old_logp", "ref_logp", "policy_factor")
    }
    poisoned["advantages"] = case.advantages_B[:, None].expand(B, T).masked_fill(off, torch.nan)
    poisoned["targets"] = case.targets_BT.masked_fill(off, -100)
    got = run(grpo_loss, case.logits.masked_fill(off[..., None], torch.nan), poisoned)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert got[1][off].eq(0).all()


@pytest.mark.parametrize("objective", [PPOClip(), PPOClip(level="sequence")], ids=["token", "sequence"])
def test_no_advantage_is_no_loss_no_gradient_and_neutral_metrics(objective):
    case, arguments = small_case()
    arguments |= {"objective": objective, "beta": 0.0, "entropy_coef": 0.0, "advantages": torch.zeros(B)}
    loss, gradient, metrics = run(grpo_loss, torch.full_like(case.logits, torch.nan), arguments)
    assert loss == 0
    assert gradient.eq(0).all()
    neutral = dict.fromkeys(metrics, 0.0) | dict.fromkeys(["ratio/mean", "ratio/min", "ratio/max"], 1.0)
    assert {name: float(x) for name, x in metrics.items()} == neutral


@LEVELS
def test_upstream_gradient_and_a_second_backward(level):
    case, arguments = small_case()
    arguments["objective"] = PPOClip(level=level)
    expected = run(grpo_loss, case.logits, arguments)[1]
    torch.testing.assert_close(run(grpo_loss, case.logits, arguments, 3.0)[1], 3 * expected, rtol=1e-6, atol=1e-9)
    leaf = case.logits.detach().requires_grad_()
    loss, _ = grpo_loss(leaf, **arguments)
    loss.backward(retain_graph=True)
    (-2 * loss).backward()
    torch.testing.assert_close(leaf.grad.double(), -expected, rtol=1e-5, atol=1e-8)


def test_backward_after_the_logits_were_overwritten_raises():
    case, arguments = small_case()
    logits = case.logits.detach().requires_grad_() * 1.0
    loss, _ = grpo_loss(logits, **arguments)
    with torch.no_grad():
        logits.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@LEVELS
def test_without_gradient(level):
    case, arguments = small_case()
    arguments["objective"] = PPOClip(level=level)
    expected = run(grpo_loss, case.logits, arguments)
    loss, metrics = grpo_loss(case.logits.detach(), **arguments)
    assert not loss.requires_grad
    torch.testing.assert_close(loss.double(), expected[0])
    torch.testing.assert_close({k: x.double() for k, x in metrics.items()}, expected[2])


@pytest.mark.parametrize("margin", [12.0, 20.0, 30.0])
def test_gradient_of_a_target_far_ahead(margin):
    logits = torch.zeros(1, 4)
    logits[0, 2] = margin
    logits += 100  # as unnormalised logits may be
    arguments = {"targets": torch.tensor([2]), "advantages": torch.ones(1), "weights": torch.ones(1)}
    gradient = run(grpo_loss, logits, arguments)[1]
    rest = 3 * torch.tensor(-margin, dtype=torch.float64).exp()
    torch.testing.assert_close(gradient[0, 2], -rest / (1 + rest), rtol=1e-4, atol=0)


def test_nan_logits_of_a_row_that_counts_are_not_hidden():
    case, arguments = small_case()
    logits = case.logits.detach().clone()
    logits[0, 0] = torch.nan
    loss, gradient, _ = run(grpo_loss, logits, arguments)
    assert loss.isnan()
    assert gradient[0, 0].isnan().any()


def test_targets_outside_the_vocabulary_are_named():
    case, arguments = small_case()
    arguments = dataclasses.replace(case, targets_BT=case.targets_BT.masked_fill(case.mask_BT, V)), arguments
    with pytest.raises(ValueError, match=rf"in \[0, {V}\), got"):
        grpo_loss(case.logits, **arguments[1] | {"targets": arguments[0].targets_BT})


@pytest.mark.parametrize(("logit", "old_logp"), [(0.0, -200.0), (-200.0, 0.0)], ids=["large", "small"])
def test_ratios_beyond_float32_stay_finite(logit, old_logp):
    logits, targets = torch.randn(2, V, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    logits[torch.arange(2), targets] = logit
    arguments = {"targets": targets, "weights": torch.full((2,), 0.5), "advantages": torch.tensor([1.0, -1.0])}
    loss, gradient, metrics = run(grpo_loss, logits, arguments | {"old_logp": torch.full((2,), old_logp)})
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert all(x.isfinite() for x in metrics.values())
