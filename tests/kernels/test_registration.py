"""The ops as the PyTorch compiler sees them."""

import pytest
import torch
from loss_cases import V, make_case
from torch._dynamo.testing import CompileCounterWithBackend

from fgrpo_kernels import (
    VESPO,
    PPOClip,
    group_advantages,
    grpo_loss,
    importance_weights,
    token_logprobs,
    token_weights,
    top_entropy_mask,
)
from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu.group_advantages import group_advantages as group_advantages_op
from fgrpo_kernels.gpu.grpo_loss import grpo_loss_tokens, scale_
from fgrpo_kernels.gpu.partial_token_stats import partial_stats_backward, partial_stats_forward
from fgrpo_kernels.gpu.policy_terms import live_rows, policy_terms
from fgrpo_kernels.token_logprobs import token_logprobs_backward_, token_logprobs_forward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
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


@needs_triton
def test_opcheck_grpo_loss():
    logits, targets, advantages, weights, old, ref = rows()
    parameters = [0.8, 1.28, 2.0, 0.0]
    arguments = (logits, targets, advantages, weights, None, old, ref, "ppo_clip", parameters, 0.1, "k3", 0.01, 1.0, V)
    torch.library.opcheck(grpo_loss_tokens, (*arguments, True))


@needs_triton
def test_opcheck_scale():
    torch.library.opcheck(scale_, (torch.ones(7, device=DEVICE), torch.tensor(2.0, device=DEVICE)))


@needs_triton
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_opcheck_policy_terms(packed):
    _, _, advantages, weights, old, ref = rows()
    mask = torch.ones_like(weights, dtype=torch.bool)
    order, starts = (torch.arange(6, device=DEVICE), torch.tensor([0, 2, 6], device=DEVICE)) if packed else (None, None)
    sequences = (order, starts, 3, 2)
    live = live_rows(advantages, weights, None, mask, *sequences, True)
    torch.library.opcheck(live_rows, (advantages, weights, None, mask, *sequences, True))
    logp, entropy = (torch.randn(6, device=DEVICE, requires_grad=True) for _ in range(2))
    vectors = (advantages, weights, None, old, ref)
    options = ("ppo_clip", [0.8, 1.28, 2.0, 0.0], True, 0.1, "k3", 0.01, True)
    torch.library.opcheck(policy_terms, (logp, entropy, live, mask, *sequences, *vectors, *options))


@needs_triton
def test_opcheck_partial_token_stats():
    logits, targets, *_ = rows()
    torch.library.opcheck(partial_stats_forward, (logits, targets, 3, 0.8))
    logits = logits.detach()
    peak, *slopes = partial_stats_forward(logits, targets, 3, 0.8)
    torch.library.opcheck(partial_stats_backward, (logits, targets, peak, *map(torch.ones_like, slopes), 3, 0.8))


@needs_triton
@pytest.mark.parametrize("ids", [None, torch.arange(6) % 2], ids=["size", "ids"])
def test_opcheck_group_advantages(ids):
    arguments = (
        torch.randn(6, device=DEVICE),
        3,
        None if ids is None else ids.to(DEVICE),
        2,
        None,
        "group",
        "mean",
        1e-4,
    )
    torch.library.opcheck(group_advantages_op, arguments)


def compiles_once(step, batches, leaf):
    """Compiled as a whole, equal to eager for every batch, and compiled once for all of them. `leaf` needs grad."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    compiles = []
    for batch in batches:
        results = []
        for function in (step, compiled):
            inputs = {name: x.clone(memory_format=torch.contiguous_format).to(DEVICE) for name, x in batch.items()}
            inputs[leaf].requires_grad_()
            loss, others = function(**inputs)
            loss.backward()
            results.append((loss.detach(), inputs[leaf].grad, others))
        torch.testing.assert_close(results[1], results[0])
        compiles.append(counter.frame_count)
    assert compiles == compiles[:1] * len(compiles)


OBJECTIVES = {"token": PPOClip(), "sequence": PPOClip(level="sequence"), "vespo": VESPO()}


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_compile_whole_and_once_for_every_length(objective, layout):
    case = make_case(torch.float32)
    padded = {  # of three sequences, one without a token
        "logits": case.logits.detach(),
        "targets": case.targets_BT,
        "advantages": case.advantages_B[:, None].expand_as(case.mask_BT),
        "weights": token_weights(case.mask_BT),
        "old_logp": case.old_logp_BT,
    }

    def step(**tensors):
        result = grpo_loss(**tensors, objective=OBJECTIVES[objective])
        entropy = token_logprobs(tensors["logits"], tensors["targets"]).entropy
        return result.loss - 0.01 * (tensors["weights"] * entropy).sum(), result.metrics

    batches = [{name: x[::2, :length] for name, x in padded.items()} for length in (5, 4, 2)]
    if layout == "packed":
        for batch in batches:
            batch["sequence_ids"] = torch.arange(len(batch["weights"]))[:, None].expand_as(batch["weights"])
        batches = [{name: x.flatten(0, 1) for name, x in batch.items()} for batch in batches]
    compiles_once(step, batches, "logits")


@pytest.mark.parametrize("groups", ["size", "ids"])
def test_advantages_compile_whole(groups):
    def step(rewards, leaf):
        ids = torch.arange(rewards.shape[0], device=rewards.device) % 3
        options = {"group_size": 3} if groups == "size" else {"group_ids": ids, "num_groups": 3}
        result = group_advantages(rewards, **options)
        return (leaf * result.advantages).sum(), result

    batches = [{"rewards": torch.randn(n), "leaf": torch.randn(n)} for n in (12, 24, 9)]
    compiles_once(step, batches, "leaf")


def test_weights_and_factors_compile_whole():
    def step(entropy, logp, old_logp, mask, leaf):
        weights = token_weights(mask, "grpo", num_sequences=(mask != 0).any(1).sum())
        factor = top_entropy_mask(entropy, mask) * importance_weights(logp, old_logp, mask)
        return (leaf * weights * factor).sum(), (weights, factor)

    rng = torch.Generator().manual_seed(0)
    shapes = [(2, 7), (3, 9), (4, 5)]
    batches = [
        {name: torch.rand(*shape, generator=rng) for name in ("entropy", "logp", "old_logp", "leaf")}
        | {"mask": (torch.rand(*shape, generator=rng) < 0.8).float()}
        for shape in shapes
    ]
    compiles_once(step, batches, "leaf")
