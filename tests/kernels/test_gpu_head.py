"""The ops that take an LM head, on a real device: mixed products, buffers of many rows, and what they hold at once."""

import pytest
import torch
from sizes import fitting

from fgrpo_kernels import PPOClip, linear_grpo_loss, linear_token_logprobs, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

HEADS = [
    pytest.param({}, id="plain"),
    pytest.param({"logit_scale": 0.5, "logit_softcap": 10.0, "temperature": 0.8}, id="scale-softcap"),
    pytest.param({"head_dtype": torch.float32}, id="float32-head"),
]


def inputs(N, H, V, dtype):
    torch.manual_seed(0)
    hidden, weight = (
        torch.randn(N, H, device="cuda").to(dtype),
        (2 * H**-0.5 * torch.randn(V, H, device="cuda")).to(dtype),
    )
    targets = torch.randint(V, (N,), device="cuda")
    logp = reference.linear_token_logprobs(hidden, weight, targets).logp
    weights = torch.full((N,), 1 / N, device="cuda")
    weights[::3] = 0  # left out before the products
    terms = {
        "advantages": torch.randn(N, device="cuda"),
        "weights": weights,
        "old_logp": logp + 0.3 * torch.randn_like(logp),
        "ref_logp": logp + 0.2 * torch.randn_like(logp),
        "sequence_ids": torch.arange(N, device="cuda") % 4,
        "beta": 0.1,
    }
    return hidden, weight, targets, terms


def gradients(op, hidden, weight, targets, options):
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight)]
    result = op(*leaves, targets, **options)
    total = result[0] if result[0].ndim == 0 else (result.logp * options["row_mask"]).sum() - 0.1 * result.entropy.sum()
    total.backward()
    return result[0].detach(), *(x.grad for x in leaves)


@pytest.mark.parametrize("vocab", fitting([1000, 32_001], [33]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("op", ["logprobs", "token", "sequence"])
def test_error_is_no_larger_than_plain_pytorch(op, head, dtype, vocab):
    N, H = fitting((600, 128), (12, 8))  # on a real device two blocks of the 400 rows that count
    hidden, weight, targets, terms = inputs(N, H, vocab, dtype)
    if op == "logprobs":
        ours, plain = linear_token_logprobs, reference.linear_token_logprobs
        options = {"row_mask": (terms["weights"] != 0).float()} | head
    else:
        ours, plain = linear_grpo_loss, reference.linear_grpo_loss
        options = terms | {"objective": PPOClip(level=op)} | head
    exact_options = options | ({"head_dtype": torch.float64} if "head_dtype" in options else {})
    exact = gradients(plain, hidden.double(), weight.double(), targets, exact_options)
    got, same_dtype = (gradients(f, hidden, weight, targets, options) for f in (ours, plain))
    for name, o, p, e in zip(("value", "hidden", "weight"), got, same_dtype, exact, strict=True):
        # The last rounding, to dtype, and the order of additions are a matter of luck at the level of eps.
        budget = (p.double() - e).abs().max() + (2e-6 + torch.finfo(dtype).eps) * e.abs().max()
        assert (o.double() - e).abs().max() <= budget, name


def test_what_it_holds_at_once():
    """A frozen head of 152k tokens: one buffer, a twentieth of the logits of all rows in float32."""
    N, H, V = fitting((4096, 256, 151_936), (24, 8, 64))
    hidden, weight = torch.randn(N, H, device="cuda").bfloat16(), (0.1 * torch.randn(V, H, device="cuda")).bfloat16()
    targets = torch.randint(V, (N,), device="cuda")
    vectors = (torch.randn(N, device="cuda"), torch.full((N,), 1 / N, device="cuda"))
    leaf = hidden.requires_grad_()

    def step():
        return torch.autograd.grad(linear_grpo_loss(leaf, weight, targets, *vectors).loss, leaf)

    step()  # the library's workspace
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= N * V * 4 / 20 + 16 * 2**20
