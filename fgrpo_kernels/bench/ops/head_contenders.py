"""The LM head and the GRPO loss as this package, plain PyTorch, TRL, Liger and quack compute them, from one batch.

B sequences   T tokens   H hidden size   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels import PPOClip, linear_grpo_loss, reference, token_weights
from fgrpo_kernels.bench.case import Maker, NotHereError, Run

Step = Callable[[Tensor, Tensor], Tensor]  # hidden [B, T, H], weight [V, H] -> scalar loss


class Batch(NamedTuple):
    hidden: Tensor  # [B, T, H]
    weight: Tensor  # [V, H]
    targets: Tensor  # [B, T]
    advantages: Tensor  # [B]
    mask: Tensor  # [B, T]
    old_logp: Tensor  # [B, T]


def make_batch(
    shape: tuple[int, int, int, int],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    padded: float = 0.0,
    degenerate: float = 0.0,
) -> Batch:
    """Realistic: off policy, both signs of the advantage; shares of padding tokens and of sequences of advantage 0."""
    B, T, H, V = shape
    generator = torch.Generator(device).manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    hidden, weight = randn(B, T, H).to(dtype), (1.5 * H**-0.5 * randn(V, H)).to(dtype)
    targets = torch.randint(V, (B, T), generator=generator, device=device)
    advantages = randn(B)
    advantages[: round(degenerate * B)] = 0
    mask = _mask(B, T, padded).to(device)
    rows = zip(hidden, targets, strict=True)
    logp = torch.stack([reference.token_logprobs(h @ weight.T, t).logp for h, t in rows])
    return Batch(hidden, weight, targets, advantages, mask, logp + 0.3 * randn(B, T))


def informative(shape: tuple[int, int, int, int], padded: float, degenerate: float) -> int:
    """How many rows of `make_batch` carry signal."""
    B, T = shape[:2]
    return int(_mask(B, T, padded)[round(degenerate * B) :].sum())


def _mask(B: int, T: int, padded: float) -> Tensor:
    """Lengths spread evenly about their mean, and independent of the advantages."""
    spread = (7 * torch.arange(B) % B + 0.5) / B - 0.5
    lengths = T * (1 - padded + spread * min(padded, 1 - padded))
    return torch.arange(T) < lengths.round()[:, None]


def contenders(*, frozen: bool = False) -> dict[str, Maker]:
    steps: dict[str, Callable[[Batch], Step]] = {
        "fgrpo": fgrpo_step,
        "eager": eager_step,
        "eager, logging the entropy": lambda batch: eager_step(batch, logs_entropy=True),
        "eager, completions only": eager_compact_step,
        "trl, every position": lambda batch: trl_step(batch, compact=False),
        "trl, completions only": trl_step,
    }
    if not frozen:  # it always makes dW
        steps["liger"] = liger_step
    return {name: gradients(step, frozen) for name, step in steps.items()}


def cross_entropy_contenders() -> dict[str, Maker]:
    """What GRPO's loss is on policy with an advantage of 1, and what more kernels are written for."""
    steps = {
        "fgrpo": fgrpo_cross_entropy,
        "eager": eager_cross_entropy,
        "liger": liger_cross_entropy,
        "quack": quack_cross_entropy,
    }
    return {name: gradients(step) for name, step in steps.items()}


def gradients(step_of: Callable[[Batch], Step], frozen: bool = False) -> Maker:
    """Forward and backward of one step, to be timed."""

    def make(batch: Batch) -> Run:
        step = step_of(batch)
        hidden, weight = batch.hidden.detach().requires_grad_(), batch.weight.detach().requires_grad_(not frozen)
        leaves = (hidden,) if frozen else (hidden, weight)
        return lambda: torch.autograd.grad(step(hidden, weight), leaves)

    return make


def surrogate(logp: Tensor, batch: Batch) -> Tensor:
    """As trainers write it: the clipped loss, averaged over the batch's tokens."""
    ratio, advantages = (logp - batch.old_logp).exp(), batch.advantages[:, None]
    loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return (loss * batch.mask).sum() / batch.mask.sum()


def fgrpo_step(batch: Batch) -> Step:
    weights = token_weights(batch.mask)
    return lambda hidden, weight: (
        linear_grpo_loss(
            hidden, weight, batch.targets, batch.advantages, weights, old_logp=batch.old_logp, objective=PPOClip()
        ).loss
    )


def fgrpo_cross_entropy(batch: Batch) -> Step:
    """On policy, where the ratio is 1 and the gradient that of the likelihood."""
    weights, ones = token_weights(torch.ones_like(batch.mask)), torch.ones_like(batch.advantages)
    return lambda hidden, weight: linear_grpo_loss(hidden, weight, batch.targets, ones, weights).loss


def eager_step(batch: Batch, *, logs_entropy: bool = False) -> Step:
    """Full logits. `logs_entropy`: with the temperature and the entropy metric that trainers have, and fgrpo's has."""

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = hidden @ weight.T
        if logs_entropy:
            logits = logits / 1.0
        log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        if logs_entropy:
            with torch.no_grad():
                for row in log_probs:  # a sequence at a time, as trainers do to save memory
                    (row.exp() * row).sum(-1)
        return surrogate(log_probs.gather(-1, batch.targets[..., None]).squeeze(-1), batch)

    return step


def eager_compact_step(batch: Batch) -> Step:
    """Full logits of the completions' rows, the padding left out."""
    mask, targets = batch.mask, batch.targets[batch.mask]

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        logp = (hidden[mask] @ weight.T).float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        return surrogate(logp.new_zeros(mask.shape).masked_scatter(mask, logp), batch)

    return step


def eager_cross_entropy(batch: Batch) -> Step:
    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = (hidden @ weight.T).flatten(0, 1)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return torch.nn.functional.cross_entropy(logits, batch.targets.flatten())

    return step


def trl_step(batch: Batch, *, compact: bool = True) -> Step:
    """TRL's fused head; `compact`: given only the rows of completions, as TRL does on GPUs, and not on CPUs."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        mask = batch.mask if compact else torch.ones_like(batch.mask)
        arguments = (weight, None, batch.targets[mask], 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("entropy",))
        logp = ChunkedLogProbFunction.apply(hidden[mask], *arguments)[0]
        return surrogate(logp.new_zeros(mask.shape).masked_scatter(mask, logp), batch)

    return step


def liger_step(batch: Batch) -> Step:
    """Liger's chunked loss, one sequence a chunk, compiled, as it comes."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    torch._dynamo.reset()  # what it compiled for another shape makes it fail on this one
    loss: Any = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=True, use_ref_model=False, loss_type="dapo", epsilon_low=0.2, epsilon_high=0.2
    )

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        mask = batch.mask.to(hidden.dtype)
        return loss(hidden, weight, batch.targets, mask, batch.advantages, old_per_token_logps=batch.old_logp)[0]

    return step


def liger_cross_entropy(batch: Batch) -> Step:
    if batch.hidden.device.type == "cpu":
        raise NotHereError("needs a GPU")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Any = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, weight: loss(weight, hidden.flatten(0, 1), batch.targets.flatten())


def quack_cross_entropy(batch: Batch) -> Step:
    """quack's chunked head, for Hopper and Blackwell."""
    if batch.hidden.device.type == "cpu":
        raise NotHereError("needs a GPU, Hopper or later")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda hidden, weight: chunked_linear_cross_entropy(hidden.flatten(0, 1), weight, batch.targets.flatten())
