import pytest
import torch
from loss_cases import make_case

from fgrpo_kernels import linear_token_logprobs, reference

SMALL_BLOCKS = 37 * 8 * 5  # five float64 rows of the case's 37 columns


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_MIN_ROWS", 1)
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_BLOCK_BYTES", SMALL_BLOCKS)


def run(op, case, *, with_bias=True, upstream=None, **arguments):
    hidden, weight, bias = case.leaves()
    logp, entropy = op(hidden, weight, case.targets_BT, bias=bias if with_bias else None, **arguments)
    rng = torch.Generator().manual_seed(3)
    g, e = (torch.randn(logp.shape, generator=rng, dtype=torch.float64) for _ in range(2))
    if upstream is not None:
        g, e = g * upstream, e * upstream
    ((logp * g).sum() + (entropy * e).sum()).backward()
    return logp, entropy, hidden.grad, weight.grad, bias.grad


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("masked", [True, False], ids=["row-mask", "all-rows"])
def test_equals_the_reference(small_blocks, temperature, with_bias, masked):
    case = make_case()
    arguments = {"temperature": temperature, "with_bias": with_bias, "row_mask": case.mask_BT if masked else None}
    expected = run(reference.linear_token_logprobs, case, **arguments)
    torch.testing.assert_close(run(linear_token_logprobs, case, **arguments), expected)


@pytest.mark.pytorch_path
def test_gradcheck(small_blocks):
    case = make_case()

    def op(hidden, weight, bias):
        return linear_token_logprobs(hidden, weight, case.targets_BT[:2], bias=bias, row_mask=case.mask_BT[:2])

    hidden, weight, bias = (x[:2] if x.ndim == 3 else x for x in (case.hidden_BTH, case.weight_VH, case.bias_V))
    assert torch.autograd.gradcheck(op, [x.clone().requires_grad_() for x in (hidden, weight, bias)])


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_any_block_size(monkeypatch, block_rows):
    case = make_case()
    expected = run(reference.linear_token_logprobs, case)
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_MIN_ROWS", 1)
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_BLOCK_BYTES", block_rows * 37 * 8)
    torch.testing.assert_close(run(linear_token_logprobs, case), expected)


def test_masked_rows_may_hold_anything(small_blocks):
    case = make_case()
    expected = run(reference.linear_token_logprobs, case, row_mask=case.mask_BT)
    case.hidden_BTH[~case.mask_BT] = torch.nan
    case.targets_BT[~case.mask_BT] = -100
    got = run(linear_token_logprobs, case, row_mask=case.mask_BT)
    torch.testing.assert_close(got, expected)
    assert got[0][~case.mask_BT].eq(0).all()
    assert got[2][~case.mask_BT].eq(0).all()


def test_all_rows_masked():
    case = make_case()
    got = run(linear_token_logprobs, case, row_mask=torch.zeros_like(case.mask_BT))
    assert all(x.eq(0).all() for x in got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_no_larger_than_plain_pytorch(small_blocks, dtype):
    case = make_case(dtype)
    exact = run(reference.linear_token_logprobs, make_case_like(case))
    ours, plain = run(linear_token_logprobs, case), run(reference.linear_token_logprobs, case)
    for name, e, o, p in zip(("logp", "entropy", "hidden", "weight", "bias"), exact, ours, plain, strict=True):
        assert o.dtype == (torch.float32 if name in ("logp", "entropy") else dtype)
        # The gradients' last rounding, to dtype, is a matter of luck at the level of its eps.
        budget = (p - e).abs().max() + (1e-6 + torch.finfo(dtype).eps / 2) * e.abs().max()
        assert (o - e).abs().max() <= budget, name


def make_case_like(case):
    """The same numbers in float64."""
    fields = {name: getattr(case, name) for name in case.__dataclass_fields__}
    return type(case)(**{name: x.double() if x.is_floating_point() else x for name, x in fields.items()})


@pytest.mark.parametrize("frozen", [0, 1, 2], ids=["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    case = make_case()
    expected = run(linear_token_logprobs, case)[2:]
    inputs = [x.requires_grad_(i != frozen) for i, x in enumerate(x.detach() for x in case.leaves())]
    rng = torch.Generator().manual_seed(3)
    logp, entropy = linear_token_logprobs(inputs[0], inputs[1], case.targets_BT, bias=inputs[2])
    g, e = (torch.randn(logp.shape, generator=rng, dtype=torch.float64) for _ in range(2))
    ((logp * g).sum() + (entropy * e).sum()).backward()
    for i, x in enumerate(inputs):
        if i == frozen:
            assert x.grad is None
        else:
            torch.testing.assert_close(x.grad, expected[i])


def test_backward_twice():
    case = make_case()
    hidden, weight, _ = case.leaves()
    logp, _ = linear_token_logprobs(hidden, weight, case.targets_BT)
    logp.sum().backward(retain_graph=True)
    once = hidden.grad.clone(), weight.grad.clone()
    logp.sum().backward()
    torch.testing.assert_close((hidden.grad, weight.grad), (2 * once[0], 2 * once[1]))


def test_under_autocast_the_product_is_in_its_dtype():
    case = make_case(torch.float32)
    hidden, weight, bias = case.leaves()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, _ = linear_token_logprobs(hidden, weight, case.targets_BT, bias=bias)
    logp.sum().backward()
    assert logp.dtype == weight.grad.dtype == torch.float32
    half = make_case(torch.bfloat16)
    expected, _ = linear_token_logprobs(half.hidden_BTH, half.weight_VH, half.targets_BT, bias=half.bias_V)
    torch.testing.assert_close(logp.detach(), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"weight": make_case().weight_VH.T}, ValueError, r"weight must be \[V, H\]", id="transposed"),
        pytest.param({"weight": make_case().weight_VH.float()}, TypeError, "weight is torch.float32", id="dtype"),
        pytest.param({"bias": torch.zeros(3, dtype=torch.float64)}, ValueError, r"bias must be \[V\]", id="bias"),
        pytest.param({"row_mask": torch.ones(6)}, ValueError, "row_mask must have one entry per row", id="row-mask"),
        pytest.param({"targets": torch.zeros(5, dtype=torch.int64)}, ValueError, "targets must have one", id="targets"),
    ],
)
def test_mistakes_are_named(change, error, message):
    case = make_case()
    arguments = {"hidden": case.hidden_BTH, "weight": case.weight_VH, "targets": case.targets_BT, **change}
    with pytest.raises(error, match=message):
        linear_token_logprobs(**arguments)
