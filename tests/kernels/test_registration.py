"""The Triton ops as the PyTorch compiler sees them."""

import pytest
import torch
from loss_cases import T, V, make_case
from torch._dynamo.testing import CompileCounterWithBackend

from fgrpo_kernels import PPOClip, grpo_loss, token_logprobs, token_weights
from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu.grpo_loss import grpo_loss_tokens, scale_
from fgrpo_kernels.gpu.token_logprobs import token_logprobs_backward_, token_logprobs_forward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    not uses_triton(torch.empty(0, device=DEVICE)), reason="needs a GPU, or TRITON_INTERPRET=1"
)


def rows(count=6):
    """logits `[count, V]`, targets, advantages, weights, old and reference logp `[count]`."""
    case = make_case(torch.float32)
    advantages_BT = case.advantages_B[:, None].expand_as(case.mask_BT)
    vectors = (case.targets_BT, advantages_BT, token_weights(case.mask_BT), case.old_logp_BT, case.ref_logp_BT)
    logits = case.logits.detach().flatten(0, 1)[:count].to(DEVICE).requires_grad_()
    return logits, *(x.reshape(-1)[:count].to(DEVICE) for x in vectors)


def test_opcheck_token_logprobs():
    logits, targets, *_ = rows()
    torch.library.opcheck(token_logprobs_forward, (logits, targets, targets != 3, 0.8, V, False))


def test_opcheck_token_logprobs_backward():
    logits, targets, *_ = rows()
    logits = logits.detach()
    saved = token_logprobs_forward(logits, targets, None, 0.8, V, False)
    slopes = torch.ones_like(saved[0])
    arguments = (torch.empty_like(logits), logits, targets, *saved, slopes, None, 0.8, V)
    torch.library.opcheck(token_logprobs_backward_, arguments, test_utils=("test_schema", "test_faketensor"))


def test_opcheck_grpo_loss():
    logits, targets, advantages, weights, old, ref = rows()
    parameters = [0.8, 1.28, 2.0, 0.0]
    arguments = (logits, targets, advantages, weights, None, old, ref, "ppo_clip", parameters, 0.1, "k3", 0.01, 1.0, V)
    torch.library.opcheck(grpo_loss_tokens, (*arguments, True))


def test_opcheck_scale():
    torch.library.opcheck(scale_, (torch.ones(7, device=DEVICE), torch.tensor(2.0, device=DEVICE)))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_compiles_whole_and_once_for_every_length(level):
    case = make_case(torch.float32)
    tensors = (
        case.logits.detach(),
        case.targets_BT,
        case.advantages_B[:, None].expand_as(case.mask_BT),
        token_weights(case.mask_BT),
        case.old_logp_BT,
    )

    def step(logits, targets, advantages, weights, old):
        result = grpo_loss(logits, targets, advantages, weights, old_logp=old, objective=PPOClip(level=level))
        entropy = token_logprobs(logits, targets).entropy
        return result.loss - 0.01 * (weights * entropy).sum(), result.metrics

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    compiles = []
    for length in (T, T - 2, T - 5):
        results = []
        for function in (step, compiled):
            leaf, *others = (x[:, :length].clone(memory_format=torch.contiguous_format).to(DEVICE) for x in tensors)
            loss, metrics = function(leaf.requires_grad_(), *others)
            loss.backward()
            results.append((loss.detach(), leaf.grad, metrics))
        torch.testing.assert_close(results[1], results[0])
        compiles.append(counter.frame_count)
    assert compiles == compiles[:1] * 3
