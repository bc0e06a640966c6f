import pytest
import torch

from fgrpo_kernels import reference, token_logprobs


def randn(*shape, dtype=torch.float64, seed=0, scale=2.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def run(op, logits, targets, grad_logp, grad_entropy, **arguments):
    """logp, entropy and the logits' gradient, in float64."""
    leaf = logits.detach().clone().requires_grad_()
    logp, entropy = op(leaf, targets, **arguments)
    ((logp * grad_logp).sum() + (entropy * grad_entropy).sum()).backward()
    return [x.detach().double() for x in (logp, entropy, leaf.grad)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("shape", [(1, 5), (7, 33), (2, 3, 130), (2, 2, 2, 3)], ids=str)
@pytest.mark.pytorch_path
def test_gradcheck(shape, temperature):
    targets = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(1))
    logits = randn(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, targets, temperature=temperature), logits)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_no_larger_than_plain_pytorch(dtype, temperature):
    N, V = 64, 1000
    logits = randn(N, V, scale=3.0, dtype=dtype)
    targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(1))
    targets[:3] = torch.tensor([0, V - 1, int(logits[2].argmax())])
    grads = randn(N, seed=2, scale=1.0), randn(N, seed=3, scale=0.1)
    exact = run(reference.token_logprobs, logits.double(), targets, *grads, temperature=temperature)
    ours = run(token_logprobs, logits, targets, *grads, temperature=temperature)
    plain = run(reference.token_logprobs, logits, targets, *grads, temperature=temperature)
    for name, e, o, p in zip(("logp", "entropy", "gradient"), exact, ours, plain, strict=True):
        budget = (p - e).abs().max() + 1e-6 * e.abs().max()
        assert (o - e).abs().max() <= budget, name


def test_many_slices_equal_one(monkeypatch):
    logits, targets = randn(50, 40), torch.arange(50) % 40
    whole = run(token_logprobs, logits, targets, 1.0, 0.3)
    monkeypatch.setattr("fgrpo_kernels.rowwise.SLICE_BYTES", 40 * 8 * 7)
    torch.testing.assert_close(run(token_logprobs, logits, targets, 1.0, 0.3), whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_strided_logits_as_trainers_slice_them(dtype):
    logits, targets = randn(3, 6, 20, dtype=dtype), torch.arange(15).view(3, 5)
    whole = logits.clone().requires_grad_()
    token_logprobs(whole[:, :-1], targets).logp.sum().backward()
    part = logits[:, :-1].contiguous().requires_grad_()
    token_logprobs(part, targets).logp.sum().backward()
    torch.testing.assert_close(whole.grad[:, :-1], part.grad)
    assert whole.grad[:, -1].eq(0).all()


@pytest.mark.parametrize("margin", [12.0, 16.0, 24.0, 30.0])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_gradient_of_a_target_far_ahead(margin, shift):
    """In float32 both 1 - p and the log of a sum that holds the target lose the gradient from 17 nats on."""
    logits = torch.zeros(1, 4, dtype=torch.float64)
    logits[0, 2] = margin
    logits += shift
    exact = run(reference.token_logprobs, logits, torch.tensor([2]), 1.0, 0.0)[2]
    ours = run(token_logprobs, logits.float(), torch.tensor([2]), 1.0, 0.0)[2]
    rest = 3 * torch.tensor(-margin, dtype=torch.float64).exp()
    torch.testing.assert_close(ours[0, 2], rest / (1 + rest), rtol=1e-4, atol=0)
    torch.testing.assert_close(ours[0, 0], exact[0, 0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_logits_of_minus_infinity_are_columns_that_do_not_exist(dtype):
    logits, targets = randn(4, 10, dtype=dtype), torch.arange(4)
    masked = torch.cat([logits, torch.full((4, 3), -torch.inf, dtype=dtype)], dim=1)
    without = run(token_logprobs, logits, targets, 1.0, 0.5)
    with_columns = run(token_logprobs, masked, targets, 1.0, 0.5)
    torch.testing.assert_close(with_columns[:2], without[:2])
    torch.testing.assert_close(with_columns[2][:, :10], without[2])
    assert with_columns[2][:, 10:].eq(0).all()
    torch.testing.assert_close(run(reference.token_logprobs, masked, targets, 1.0, 0.5), with_columns)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rows_without_incoming_gradient_get_exactly_zero_even_if_nan(dtype):
    logits = randn(3, 8, dtype=dtype)
    logits[1] = torch.nan
    leaf = logits.requires_grad_()
    logp, _ = token_logprobs(leaf, torch.tensor([0, 1, 2]))
    logp[[0, 2]].sum().backward()
    assert leaf.grad[1].eq(0).all()
    assert leaf.grad[[0, 2]].isfinite().all()


def test_no_rows():
    leaf = torch.empty(0, 8, requires_grad=True)
    logp, entropy = token_logprobs(leaf, torch.empty(0, dtype=torch.int64))
    (logp.sum() + entropy.sum()).backward()
    assert leaf.grad.shape == (0, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_backward_twice(dtype):
    leaf = randn(3, 8, dtype=dtype).requires_grad_()
    logp, _ = token_logprobs(leaf, torch.tensor([0, 1, 2]))
    logp.sum().backward(retain_graph=True)
    once = leaf.grad.clone()
    logp.sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * once)


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_inplace_backward_reuses_the_logits_and_refuses_a_second_pass(dtype, layout):
    leaf, targets = randn(2, 4, 8, dtype=dtype), torch.arange(8).view(2, 4)
    if layout == "permuted":  # no unit stride along the vocabulary
        leaf = leaf.transpose(1, 2).contiguous().transpose(1, 2)
    expected = run(token_logprobs, leaf, targets, torch.tensor([1.0, 0, 2, 3]), 0.5)[2].to(dtype)
    leaf.requires_grad_()
    logits = leaf * 1.0
    logp, entropy = token_logprobs(logits, targets, inplace_backward=True)
    loss = (logp * torch.tensor([1.0, 0, 2, 3])).sum() + 0.5 * entropy.sum()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, expected)
    torch.testing.assert_close(logits.detach(), expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("logits", "targets", "arguments", "error", "message"),
    [
        pytest.param(randn(2, 5), torch.tensor([0, -100]), {}, ValueError, r"\[0, 5\), got -100 to 0", id="ignored"),
        pytest.param(randn(2, 5), torch.tensor([0, 5]), {}, ValueError, r"\[0, 5\), got 0 to 5", id="range"),
        pytest.param(randn(2, 5), torch.tensor([0]), {}, ValueError, r"shape \[2\], got \[1\]", id="shape"),
        pytest.param(randn(2, 5), torch.tensor([0.0, 1.0]), {}, TypeError, "int64 token ids", id="float-targets"),
        pytest.param(
            randn(2, 5), torch.tensor([0, 1]), {"temperature": 0}, ValueError, "temperature", id="temperature"
        ),
        pytest.param(
            torch.ones(2, 5, dtype=torch.int64), torch.tensor([0, 1]), {}, TypeError, "logits", id="int-logits"
        ),
    ],
)
def test_mistakes_are_named(logits, targets, arguments, error, message):
    with pytest.raises(error, match=message):
        token_logprobs(logits, targets, **arguments)
