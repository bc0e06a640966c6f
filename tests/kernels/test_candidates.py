"""Whatever a row kernel is launched with: the same loss, log-probabilities and gradients, within rounding."""

import pytest
import torch

from fgrpo_kernels.jit import INTERPRETED

if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a device", allow_module_level=True)

from fgrpo_kernels import grpo_loss, reference, token_logprobs
from fgrpo_kernels.gpu.candidates import CANDIDATES
from fgrpo_kernels.gpu.launch_table import multiprocessors, trying

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Rows of one and of six of the largest tile, of which the last is not whole; columns that are padding.
ROWS, VOCABULARIES, PADDING = 5, (150, 90_001), 37


@pytest.fixture(params=VOCABULARIES, ids="V = {}".format, scope="module")
def batch(request):
    """Logits with columns of padding, and float32 gradients in them; one row has no weight and is NaN."""
    rng, V = torch.Generator().manual_seed(0), request.param
    logits = (3 * torch.randn(ROWS, V + PADDING, generator=rng)).bfloat16()
    targets = torch.tensor([0, V - 1, V // 2, 1, 5])
    logp = reference.token_logprobs(logits[:, :V].double(), targets).logp
    logits[3] = torch.nan
    terms = {
        "advantages": torch.tensor([1.0, -0.5, 0.7, 1.0, -1.0]),
        "weights": torch.tensor([0.3, 0.2, 0.4, 0.0, 0.1]),
        "old_logp": logp.float() + 0.1 * torch.randn(ROWS, generator=rng),
        "ref_logp": logp.float() + 0.2 * torch.randn(ROWS, generator=rng),
    }
    exact = logits.double().requires_grad_()
    options = {"beta": 0.1, "entropy_coef": 0.01, "vocab_size": V}
    reference.grpo_loss(exact, targets, **{k: x.double() for k, x in terms.items()}, **options).loss.backward()
    terms = {name: x.to(DEVICE) for name, x in terms.items()}
    return logits.to(DEVICE), targets.to(DEVICE), terms | options, exact.grad


@pytest.mark.parametrize("choice", CANDIDATES["loss"].values(), ids=CANDIDATES["loss"])
def test_loss(choice, batch):
    logits, targets, terms, exact = batch
    leaf = logits.detach().requires_grad_()
    with trying("loss", choice):
        grpo_loss(leaf, targets, **terms).loss.backward()
    # The gradient is rounded to bfloat16 once.
    torch.testing.assert_close(leaf.grad.cpu().double(), exact, rtol=2**-8, atol=1e-7 * float(exact.abs().max()))


@pytest.mark.parametrize("kind", ["scan", "write"])
def test_logprobs(kind, batch):
    logits, targets, terms, _ = batch
    counted = [0, 1, 2, 4]
    V = terms["vocab_size"]
    exact = logits.cpu()[counted].double().requires_grad_()
    expected = reference.token_logprobs(exact[:, :V], targets.cpu()[counted])
    (expected.logp.sum() + expected.entropy.sum()).backward()
    for name, choice in CANDIDATES[kind].items():
        leaf = logits[counted].detach().requires_grad_()
        with trying(kind, choice):
            logp, entropy = token_logprobs(leaf[:, :V], targets[counted])
            (logp.sum() + entropy.sum()).backward()
        torch.testing.assert_close(logp.cpu().double(), expected.logp.detach(), rtol=2e-6, atol=0, msg=name)
        torch.testing.assert_close(leaf.grad.cpu().double(), exact.grad, rtol=2**-8, atol=1e-7, msg=name)


def test_a_program_takes_several_rows():
    """There are fewer overlapped programs than rows here: they write a row's gradient while they read another."""
    if INTERPRETED:
        programs = max(choice.programs for choice in CANDIDATES["loss"].values())
        assert programs * multiprocessors(torch.device(DEVICE)) < ROWS
