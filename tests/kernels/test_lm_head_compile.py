"""The ops that take a head as the PyTorch compiler sees them: whole, with one registered op inside."""

import pytest
import torch
from loss_cases import V, make_case
from torch._dynamo.testing import CompileCounterWithBackend

from fgrpo_kernels import PPOClip, linear_grpo_loss, linear_token_logprobs, token_weights
from fgrpo_kernels.linear_token_logprobs import head_logprobs, head_logprobs_backward


def head_arguments(rows=5):
    case = make_case(torch.float32)
    hidden, weight, bias = case.leaves()
    rng = torch.Generator().manual_seed(4)
    low = [torch.randn(n, 2, generator=rng).requires_grad_() for n in (rows, V)]
    hidden = hidden.detach().flatten(0, 1)[:rows].requires_grad_()
    return hidden, weight, bias, *low, case.targets_BT.flatten()[:rows].clamp(max=V - 3)


@pytest.mark.parametrize("softcap", [None, 3.0], ids=["uncapped", "softcap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(softcap, dtype):
    *tensors, targets = head_arguments()
    torch.library.opcheck(head_logprobs, (*tensors, targets, targets != 3, 0.8, softcap, V - 2, dtype))
    torch.library.opcheck(head_logprobs, (*tensors[:2], None, None, None, targets, None, 0.8, softcap, V, dtype))


def test_opcheck_backward():
    *tensors, targets = (x.detach() for x in head_arguments())
    stats = head_logprobs(*tensors, targets, None, 1.0, None, V, torch.float32)
    slopes = torch.ones_like(stats[0])
    for needed in ([True] * 5, [True, False, False, False, True]):
        arguments = (*tensors, targets, None, *stats, slopes, None, 1.0, None, V, torch.float32, needed)
        torch.library.opcheck(head_logprobs_backward, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_compiles_whole_and_once_for_every_length(level):
    case = make_case(torch.float32)
    per_row = (
        case.targets_BT, case.advantages_B[:, None].expand_as(case.mask_BT), token_weights(case.mask_BT),
        case.old_logp_BT,
    )  # fmt: skip

    def step(hidden, weight, targets, advantages, weights, old):
        head = {"logit_scale": 0.5, "logit_softcap": 4.0}
        result = linear_grpo_loss(
            hidden, weight, targets, advantages, weights, old_logp=old, objective=PPOClip(level=level), **head
        )
        entropy = linear_token_logprobs(hidden, weight, targets, row_mask=weights, **head).entropy
        return result.loss - 0.01 * (weights * entropy).sum(), result.metrics

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    compiles = []
    for length in (5, 4, 2):
        results = []
        for function in (step, compiled):
            hidden, *others = (
                x[::2, :length].clone(memory_format=torch.contiguous_format) for x in (case.hidden_BTH, *per_row)
            )
            hidden, weight = hidden.requires_grad_(), case.weight_VH.clone().requires_grad_()
            loss, metrics = function(hidden, weight, *others)
            loss.backward()
            results.append((loss.detach(), hidden.grad, weight.grad, metrics))
        torch.testing.assert_close(results[1], results[0])
        compiles.append(counter.frame_count)
    assert compiles == compiles[:1] * len(compiles)
