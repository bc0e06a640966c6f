"""Everything that a model may do between hidden states and softmax, in both ops that take a head."""

import pytest
import torch
from loss_cases import B, H, T, V, make_case
from torch.utils.checkpoint import checkpoint

from fgrpo_kernels import PPOClip, linear_grpo_loss, linear_token_logprobs, reference, token_weights
from fgrpo_kernels.head import blocks

R = 3
LEAVES = ("hidden", "weight", "bias", "hidden_A", "weight_B")
HEADS = [
    pytest.param({}, id="plain"),
    pytest.param({"logit_scale": 0.0625}, id="scale"),
    pytest.param({"logit_softcap": 2.0}, id="softcap"),
    pytest.param({"low_rank": True}, id="low-rank"),
    pytest.param({"bias": None, "low_rank": True, "vocab_size": V - 5}, id="low-rank-vocab-size"),
    pytest.param(
        {"low_rank": True, "logit_scale": 1.7, "logit_softcap": 3.0, "temperature": 0.7, "vocab_size": V - 5},
        id="everything",
    ),
]
OPS = ["logprobs", "token-loss", "sequence-loss"]


@pytest.fixture(params=[5, 1000], ids=["blocks-of-5", "one-block"])
def block_rows(request, monkeypatch):
    """Blocks of so many rows, on any device."""
    limited_to(request.param, monkeypatch)
    return request.param


def limited_to(rows, monkeypatch):
    monkeypatch.setattr(blocks, "rows_per_block", lambda num_rows, *_: max(1, min(rows, num_rows)))


def leaves(dtype=torch.float64):
    """The head's tensors: hidden states, weight, bias, and a low-rank term with its own hidden states."""
    case = make_case(dtype)
    rng = torch.Generator().manual_seed(7)
    low = [(0.5 * torch.randn(*shape, R, generator=rng, dtype=torch.float64)).to(dtype) for shape in ((B, T), (V,))]
    return dict(zip(LEAVES, (case.hidden_BTH, case.weight_VH, case.bias_V, *low), strict=True))


def run(namespace, op, tensors, head, upstream=1.0):
    """What comes out and the gradients of the leaves, None for those that take no part."""
    case = make_case(torch.float64)
    tensors = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    head = dict(head)
    low_rank = (tensors["hidden_A"], tensors["weight_B"]) if head.pop("low_rank", False) else None
    head = {"bias": tensors["bias"], "low_rank": low_rank} | head
    targets = case.targets_BT.clamp(max=head.get("vocab_size", V) - 1)
    arguments = (tensors["hidden"], tensors["weight"], targets)
    if op == "logprobs":
        outputs = namespace.linear_token_logprobs(*arguments, row_mask=case.mask_BT, **head)
        rng = torch.Generator().manual_seed(3)
        total = sum((x * torch.randn(B, T, generator=rng, dtype=torch.float64)).sum() for x in outputs)
    else:
        objective = PPOClip(level=op.removesuffix("-loss"))
        total, metrics = namespace.linear_grpo_loss(
            *arguments, case.advantages_B, token_weights(case.mask_BT, "grpo"), old_logp=case.old_logp_BT,
            ref_logp=case.ref_logp_BT, objective=objective, beta=0.1, entropy_coef=0.05, **head,
        )  # fmt: skip
        outputs = (total, *metrics.values())
    (total * upstream).backward()
    return *(x.detach() for x in outputs), *(x.grad for x in tensors.values())


class FgrpoKernels:
    linear_grpo_loss = staticmethod(linear_grpo_loss)
    linear_token_logprobs = staticmethod(linear_token_logprobs)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("op", OPS)
def test_equals_the_reference(block_rows, op, head):
    expected = run(reference, op, leaves(), head, upstream=2.5)
    torch.testing.assert_close(run(FgrpoKernels, op, leaves(), head, upstream=2.5), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("op", OPS)
def test_error_is_no_larger_than_plain_pytorch(monkeypatch, op, head, dtype):
    limited_to(17, monkeypatch)
    tensors = leaves(dtype)
    exact = run(reference, op, {name: x.double() for name, x in tensors.items()}, head)
    ours, plain = run(FgrpoKernels, op, tensors, head), run(reference, op, tensors, head)
    names = ("logp", "entropy") if op == "logprobs" else ("loss", *[""] * (len(exact) - 6))
    for name, e, o, p in zip((*names, *LEAVES), exact, ours, plain, strict=True):
        if e is None or not name:  # metrics: means of what is compared here
            continue
        # The gradients' last rounding, to dtype, is a matter of luck at the level of its eps; and so is the order in
        # which a product's terms are added up.
        eps = torch.finfo(dtype).eps
        budget = (p - e).abs().max() + (2e-6 + eps) * e.abs().max()
        assert (o - e).abs().max() <= budget, name


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("head", [{}, {"logit_softcap": 2.0}], ids=["plain", "softcap"])
def test_nothing_lies_beside_a_row_of_logits(monkeypatch, op, head):
    """Some products of 16 bits on a CPU read it, and multiply it with 0."""
    rooms, made = [], blocks._buffer

    def of_nan(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, torch.nan))
            rooms.append(made(*arguments))
        return rooms[-1]

    monkeypatch.setattr(blocks, "_buffer", of_nan)
    run(FgrpoKernels, op, leaves(torch.bfloat16), head)
    assert rooms
    assert all((room[:, V:] == 0).all() for room in rooms)


@pytest.mark.parametrize("op", OPS)
def test_any_block_size_and_any_order_of_rows(monkeypatch, op):
    """float32: at most some roundings' difference of the largest entry between any two ways."""
    head = {"low_rank": True, "logit_softcap": 3.0}
    tensors = leaves(torch.float32)
    expected = run(FgrpoKernels, op, tensors, head)
    for rows in (1, 2, 7, 16):
        limited_to(rows, monkeypatch)
        for got, whole in zip(run(FgrpoKernels, op, tensors, head), expected, strict=True):
            # A loss is a sum of terms of both signs and of size about 1: it has some roundings of theirs besides.
            of_terms = 3 * torch.finfo(torch.float32).eps if whole.dim() == 0 else 0.0
            assert (got - whole).abs().max() <= 2e-6 * whole.abs().max() + of_terms


@pytest.mark.parametrize("op", OPS)
def test_a_head_in_float32(block_rows, op):
    """Of bfloat16 tensors: as if they had been float32 from the start, with the gradients rounded once."""
    half = leaves(torch.bfloat16)
    head = {"head_dtype": torch.float32, "low_rank": True}
    ours = run(FgrpoKernels, op, half, head)
    whole = run(FgrpoKernels, op, {name: x.float() for name, x in half.items()}, {"low_rank": True})
    for o, w in zip(ours, whole, strict=True):
        torch.testing.assert_close(o, w.to(o.dtype), rtol=1e-6 if o.dtype == torch.float32 else 2**-7, atol=1e-7)


def test_a_head_in_float32_takes_a_weight_of_another_dtype_and_no_autocast():
    tensors = leaves(torch.float32)
    case = make_case(torch.float32)
    arguments = (tensors["weight"], case.targets_BT)
    expected = linear_token_logprobs(tensors["hidden"].bfloat16().float(), *arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_token_logprobs(tensors["hidden"].bfloat16(), *arguments, head_dtype=torch.float32)
    torch.testing.assert_close(got, expected)


def test_an_adapter_trains_through_its_own_graph():
    """hidden_A = scaling * lora_A(hidden): A and the hidden states get their gradient by autograd."""
    case = make_case()
    rng = torch.Generator().manual_seed(8)
    A, low_B = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((R, H), (V, R)))

    def gradients(merged):
        hidden, a, b = (x.clone().requires_grad_() for x in (case.hidden_BTH, A, low_B))
        weight = case.weight_VH
        if merged:
            logp = linear_token_logprobs(hidden, weight + 2.0 * b @ a, case.targets_BT).logp
        else:
            logp = linear_token_logprobs(hidden, weight, case.targets_BT, low_rank=(2.0 * hidden @ a.T, b)).logp
        (logp * case.mask_BT).sum().backward()
        return logp.detach(), hidden.grad, a.grad, b.grad

    torch.testing.assert_close(gradients(merged=False), gradients(merged=True))


def test_tied_embeddings():
    """One parameter is the embedding and the head: its gradient is the sum of both uses."""
    case = make_case()

    def gradient(loss_of):
        table = case.weight_VH.clone().requires_grad_()
        hidden = table[case.targets_BT.roll(1, 1)] + case.hidden_BTH
        loss_of(hidden, table).backward()
        return table.grad

    arguments = (case.targets_BT, case.advantages_B, token_weights(case.mask_BT))
    ours = gradient(lambda hidden, table: linear_grpo_loss(hidden, table, *arguments).loss)
    expected = gradient(lambda hidden, table: reference.linear_grpo_loss(hidden, table, *arguments).loss)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("op", OPS)
def test_under_gradient_checkpointing(op, use_reentrant):
    class Checkpointed:
        @staticmethod
        def linear_grpo_loss(hidden, weight, *rest, **options):
            def loss(hidden, weight):
                result = linear_grpo_loss(hidden, weight, *rest, **options)
                return result.loss, result.metrics

            return checkpoint(loss, hidden, weight, use_reentrant=use_reentrant)

        @staticmethod
        def linear_token_logprobs(hidden, weight, *rest, **options):
            return checkpoint(
                lambda *x: tuple(linear_token_logprobs(*x, *rest, **options)),
                hidden,
                weight,
                use_reentrant=use_reentrant,
            )

    torch.testing.assert_close(run(Checkpointed, op, leaves(), {}), run(FgrpoKernels, op, leaves(), {}))


def test_used_twice_in_one_loss():
    """As two micro-batches of one step would be: the gradients add up."""
    case = make_case()
    hidden, weight, _ = case.leaves()
    arguments = (case.targets_BT, case.advantages_B, token_weights(case.mask_BT))
    first = linear_grpo_loss(hidden, weight, *arguments).loss
    second = linear_token_logprobs(hidden, weight, case.targets_BT).entropy.mean()
    (first - 0.1 * second).backward()
    expected = [torch.zeros_like(x) for x in (hidden, weight)]
    for scale, make in (
        (1.0, lambda h, w: reference.linear_grpo_loss(h, w, *arguments).loss),
        (-0.1, lambda h, w: reference.linear_token_logprobs(h, w, case.targets_BT).entropy.mean()),
    ):
        copies = [x.detach().clone().requires_grad_() for x in (hidden, weight)]
        (scale * make(*copies)).backward()
        expected = [total + x.grad for total, x in zip(expected, copies, strict=True)]
    torch.testing.assert_close([hidden.grad, weight.grad], expected)


@pytest.mark.parametrize("buffers", [1, 2])
@pytest.mark.parametrize("num_rows", [1, 300, 2_000, 8_192, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_block_size_on_a_gpu(monkeypatch, num_rows, dtype, buffers):
    monkeypatch.setattr(blocks, "_free_bytes", lambda device: 80 << 30)
    rows = blocks.rows_per_block(num_rows, 151_936, buffers, dtype, torch.device("cuda"))
    assert rows in (256, *range(384, 1025, 128))
    twentieth = num_rows * 151_936 * 4 / 20
    assert buffers * rows * 151_936 * dtype.itemsize <= twentieth or rows == 256
    monkeypatch.setattr(blocks, "_free_bytes", lambda device: 400 << 20)
    scarce = blocks.rows_per_block(num_rows, 151_936, buffers, dtype, torch.device("cuda"))
    assert buffers * scarce * 151_936 * dtype.itemsize <= 100 << 20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"logit_scale": 0.0}, ValueError, "logit_scale must be a positive number", id="scale"),
        pytest.param({"logit_softcap": -1.0}, ValueError, "logit_softcap must be a positive number", id="softcap"),
        pytest.param({"vocab_size": V + 1}, ValueError, f"vocab_size must be in 1 to {V}", id="vocab-size"),
        pytest.param({"head_dtype": torch.int8}, TypeError, "head_dtype must be a floating-point dtype", id="dtype"),
        pytest.param(
            {"low_rank": (torch.zeros(B, T, R), torch.zeros(R, V))}, ValueError, r"low_rank must be", id="transposed"
        ),
        pytest.param(
            {"low_rank": (torch.zeros(B, T - 1, R), torch.zeros(V, R))}, ValueError, r"low_rank must be", id="rows"
        ),
    ],
)
@pytest.mark.parametrize("op", ["linear_token_logprobs", "linear_grpo_loss"])
def test_mistakes_are_named(op, change, error, message):
    case = make_case()
    arguments = [case.hidden_BTH, case.weight_VH, case.targets_BT]
    if op == "linear_grpo_loss":
        arguments += [case.advantages_B, token_weights(case.mask_BT)]
    with pytest.raises(error, match=f"{op}: {message}"):
        getattr(FgrpoKernels, op)(*arguments, **change)
