import pytest
import torch
from loss_cases import B, H, T, V, make_case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fgrpo_kernels import PPOClip, linear_grpo_loss, reference, token_weights
from fgrpo_kernels.dispatch import uses_triton

BLOCKS = [pytest.param(rows, id=f"blocks-of-{rows}") for rows in (1, 5, 1000)]
LEVELS = ["token", "sequence"]


@pytest.fixture
def block_rows(request, monkeypatch):
    """Limits blocks to this many rows of V float64 logits."""
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_MIN_ROWS", 1)
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_BLOCK_BYTES", request.param * V * 8)
    return request.param


def arguments_of(case, level="token", **changes):
    hidden, weight, bias = case.leaves()
    arguments = {
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "targets": case.targets_BT,
        "advantages": case.advantages_B,
        "weights": token_weights(case.mask_BT, "grpo"),
        "old_logp": case.old_logp_BT,
        "ref_logp": case.ref_logp_BT,
        "objective": PPOClip(0.2, 0.28, level=level),
    }
    return arguments | changes


def run(op, arguments, upstream=1.0):
    """Loss, metrics and the gradients of hidden, weight, bias."""
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in ("hidden", "weight", "bias")}
    loss, metrics = op(**arguments | leaves)
    (loss * upstream).backward()
    return loss.detach(), metrics, *(x.grad for x in leaves.values())


@pytest.mark.parametrize("block_rows", BLOCKS, indirect=True)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"beta": 0.1}, id="kl"),
        pytest.param({"beta": 0.1, "kl": "k3_is", "entropy_coef": 0.05}, id="kl-is-entropy"),
        pytest.param({"policy_factor": make_case().factor_BT, "old_logp": None}, id="factor-on-policy"),
        pytest.param({"temperature": 0.7, "vocab_size": V - 5}, id="temperature-vocab-size"),
    ],
)
def test_equals_the_loss_of_full_logits(block_rows, level, options):
    case = make_case()
    targets = case.targets_BT.clamp(max=options.get("vocab_size", V) - 1)
    arguments = arguments_of(case, level, targets=targets, **options)
    expected = run(reference.linear_grpo_loss, arguments, upstream=2.5)
    torch.testing.assert_close(run(linear_grpo_loss, arguments, upstream=2.5), expected)


@pytest.mark.parametrize("block_rows", BLOCKS, indirect=True)
@pytest.mark.parametrize("level", LEVELS)
def test_packed_rows_in_any_order(block_rows, level):
    case = make_case()
    arguments = arguments_of(case, level, beta=0.1)
    loss, metrics, grad_hidden, grad_weight, grad_bias = run(linear_grpo_loss, arguments)
    rows = torch.randperm(B * T, generator=torch.Generator().manual_seed(5))
    per_row = ("hidden", "targets", "weights", "old_logp", "ref_logp")
    flat = arguments | {name: arguments[name].detach().flatten(0, 1)[rows] for name in per_row}
    flat["sequence_ids"] = torch.arange(B).repeat_interleave(T)[rows]
    got = run(linear_grpo_loss, flat)
    torch.testing.assert_close(got, (loss, metrics, grad_hidden.flatten(0, 1)[rows], grad_weight, grad_bias))


@pytest.mark.parametrize("block_rows", [pytest.param(5, id="small-blocks")], indirect=True)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.pytorch_path
def test_gradcheck(block_rows, level):
    case = make_case()
    arguments = arguments_of(case, level, beta=0.1, entropy_coef=0.05, policy_factor=case.factor_BT)
    inputs = [arguments.pop(name) for name in ("hidden", "weight", "bias")]
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: linear_grpo_loss(hidden, weight, bias=bias, **arguments).loss,
        inputs,
        fast_mode=True,
    )


class LargestTensor(TorchDispatchMode):
    """The most bytes that any tensor made inside has, and how many rows went through matrix products."""

    def __init__(self, vocab=V):
        super().__init__()
        self.vocab, self.nbytes, self.product_rows = vocab, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.nbytes = max([self.nbytes, *(x.nbytes for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        if func in (torch.ops.aten.mm.out, torch.ops.aten.addmm.out) and out.shape[1] == self.vocab:
            self.product_rows += len(out)  # hidden @ weight.T into the block
        return out


@pytest.mark.parametrize("level", LEVELS)
def test_the_logits_of_all_rows_never_exist(monkeypatch, level):
    N, vocab, hidden_size, block = 100, 500, 4, 10
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, hidden_size, generator=rng).requires_grad_()
    weight = torch.randn(vocab, hidden_size, generator=rng).requires_grad_()
    targets = torch.randint(vocab, (N,), generator=rng)
    arguments = {"weights": torch.ones(N), "sequence_ids": torch.arange(N) // 5, "objective": PPOClip(level=level)}
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_MIN_ROWS", 1)
    monkeypatch.setattr("fgrpo_kernels.head.blocks.CPU_BLOCK_BYTES", block * vocab * 4)
    with LargestTensor(vocab) as seen:
        linear_grpo_loss(hidden, weight, targets, torch.randn(20, generator=rng), **arguments).loss.backward()
    columns = 512 if uses_triton(hidden) else vocab  # a kernel's rows are aligned
    assert seen.nbytes == block * columns * 4
    assert seen.product_rows == (N if level == "token" else 2 * N)
    with LargestTensor() as seen:
        reference.linear_grpo_loss(hidden, weight, targets, torch.randn(20, generator=rng), **arguments)
    assert seen.nbytes == N * vocab * 4  # the measure sees such a tensor where there is one


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        pytest.param({}, 20, id="weighted-with-advantage"),
        pytest.param({"beta": 0.1}, 28, id="weighted"),
        pytest.param({"policy_factor": make_case().factor_BT}, 19, id="without-factor-0"),
        pytest.param({"weights": torch.zeros(B, T)}, 0, id="none"),
    ],
)
def test_only_informative_rows_reach_the_head(options, rows):
    case = make_case()
    assert case.mask_BT.sum() == 28
    assert case.mask_BT[case.advantages_B != 0].sum() == 20
    with LargestTensor() as seen:
        linear_grpo_loss(**arguments_of(case, **options)).loss.backward()
    assert seen.product_rows == rows


@pytest.mark.parametrize("level", LEVELS)
def test_rows_that_all_carry_signal_are_not_looked_for(level):
    case = make_case()
    arguments = arguments_of(case, level, beta=0.1, weights=torch.full((B, T), 0.1))
    expected = run(linear_grpo_loss, arguments)
    got = run(linear_grpo_loss, arguments | {"all_informative": True})
    assert all(torch.equal(x, y) for x, y in zip(tree_leaves(got), tree_leaves(expected), strict=True))
    with pytest.raises(ValueError, match=rf"all_informative, but {(~case.mask_BT).sum()} of {B * T} rows"):
        linear_grpo_loss(**arguments_of(case, level, beta=0.1), all_informative=True)


@pytest.mark.parametrize("level", LEVELS)
def test_rows_of_weight_zero_may_hold_anything(level):
    case = make_case()
    arguments = arguments_of(case, level, beta=0.1)
    expected = run(linear_grpo_loss, arguments)
    off = ~case.mask_BT
    poisoned = {name: arguments[name].masked_fill(off, torch.nan) for name in ("old_logp", "ref_logp")}
    poisoned["targets"] = case.targets_BT.masked_fill(off, -100)
    poisoned["hidden"] = case.hidden_BTH.masked_fill(off[..., None], torch.nan)
    got = run(linear_grpo_loss, arguments | poisoned)
    torch.testing.assert_close(got, expected)
    assert got[2][off].eq(0).all()


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_informative(level):
    case = make_case()
    loss, _, *gradients = run(linear_grpo_loss, arguments_of(case, level, weights=torch.zeros(B, T)))
    assert loss == 0
    assert all(g.eq(0).all() for g in gradients)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    arguments = arguments_of(make_case())
    _, _, *expected = run(linear_grpo_loss, arguments)
    arguments[frozen].requires_grad_(False)
    with LargestTensor() as seen:
        linear_grpo_loss(**arguments).loss.backward()
    for name, gradient in zip(("hidden", "weight", "bias"), expected, strict=True):
        if name == frozen:
            assert arguments[name].grad is None
        else:
            torch.testing.assert_close(arguments[name].grad, gradient)
    assert seen.product_rows == 20


@pytest.mark.parametrize("level", LEVELS)
def test_without_grad_nothing_but_the_loss(level):
    arguments = arguments_of(make_case(), level)
    expected = run(linear_grpo_loss, arguments)
    with torch.no_grad():
        loss, metrics = linear_grpo_loss(**arguments)
    assert not loss.requires_grad
    torch.testing.assert_close((loss, metrics), expected[:2])


@pytest.mark.parametrize("level", LEVELS)
def test_backward_twice(level):
    arguments = arguments_of(make_case(), level)
    loss, _ = linear_grpo_loss(**arguments)
    loss.backward(retain_graph=True)
    once = [arguments[name].grad.clone() for name in ("hidden", "weight", "bias")]
    (2 * loss).backward()
    for name, gradient in zip(("hidden", "weight", "bias"), once, strict=True):
        torch.testing.assert_close(arguments[name].grad, 3 * gradient)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block_rows", [pytest.param(5, id="small-blocks")], indirect=True)
def test_error_is_no_larger_than_plain_pytorch(block_rows, dtype):
    case = make_case(dtype)
    arguments = arguments_of(case, entropy_coef=0.05)
    exact = run(reference.linear_grpo_loss, {n: x.double() if is_float(x) else x for n, x in arguments.items()})
    ours, plain = run(linear_grpo_loss, arguments), run(reference.linear_grpo_loss, arguments)
    for name, e, o, p in zip(("loss", None, "hidden", "weight", "bias"), exact, ours, plain, strict=True):
        if name is None:
            continue
        assert o.dtype == (torch.float32 if name == "loss" else dtype)
        # The gradients' last rounding, to dtype, is a matter of luck at the level of its eps.
        budget = (p - e).abs().max() + (1e-6 + torch.finfo(dtype).eps / 2) * e.abs().max()
        assert (o - e).abs().max() <= budget, name


def is_float(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def test_float16_gradients_do_not_underflow():
    """Weights of 1 / tokens make most of a row's gradient smaller than float16 can hold; a loss scale comes later."""
    case = make_case(torch.float16)
    tiny = token_weights(case.mask_BT) * 1e-6
    arguments = arguments_of(case, weights=tiny, ref_logp=None)
    exact = run(reference.linear_grpo_loss, {n: x.double() if is_float(x) else x for n, x in arguments.items()}, 1e6)
    ours = run(linear_grpo_loss, arguments, 1e6)
    for e, o in zip(exact[2:], ours[2:], strict=True):
        assert (o - e).abs().max() < 0.01 * e.abs().max()


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast(hidden_dtype):
    arguments = arguments_of(make_case(torch.float32))
    half = {name: arguments[name].detach().bfloat16() for name in ("hidden", "weight", "bias")}
    expected = run(linear_grpo_loss, arguments | half)
    arguments["hidden"] = arguments["hidden"].detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = linear_grpo_loss(**arguments)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected[0])
    torch.testing.assert_close(arguments["weight"].grad.bfloat16(), expected[3])  # the same sums, not rounded
    assert arguments["hidden"].grad.dtype == hidden_dtype


def test_strided_hidden_states_as_trainers_slice_them():
    case = make_case()
    arguments = arguments_of(case)
    whole = torch.cat([case.hidden_BTH, torch.ones(B, 1, H, dtype=torch.float64)], dim=1).requires_grad_()
    linear_grpo_loss(**arguments | {"hidden": whole[:, :-1]}).loss.backward()
    torch.testing.assert_close(whole.grad[:, :-1], run(linear_grpo_loss, arguments)[2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"weight": torch.zeros(V, H)}, TypeError, "weight is torch.float32", id="dtype"),
        pytest.param({"targets": torch.full((B, T), V)}, ValueError, r"in \[0, 37\), got 37", id="targets"),
        pytest.param({"vocab_size": 0}, ValueError, "linear_grpo_loss: vocab_size must be", id="vocab-size"),
        pytest.param({"advantages": torch.ones(B + 1)}, ValueError, "linear_grpo_loss: advantages", id="advantages"),
    ],
)
def test_mistakes_are_named(change, error, message):
    with pytest.raises(error, match=message):
        linear_grpo_loss(**arguments_of(make_case()) | change)
