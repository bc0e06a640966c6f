"""The LM head and the GRPO loss as this package, plain PyTorch, TRL and Liger compute them, from one batch.

B sequences   T tokens   H hidden size   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from common import relative_error
from torch import Tensor

from fgrpo_kernels import PPOClip, linear_grpo_loss, reference, token_weights

Step = Callable[[Tensor, Tensor], Tensor]  # hidden [B, T, H], weight [V, H] -> scalar loss


class Batch(NamedTuple):
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    advantages: Tensor
    mask: Tensor
    old_logp: Tensor


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
    # Lengths spread evenly about their mean, and independent of the advantages.
    spread = (7 * torch.arange(B, device=device) % B + 0.5) / B - 0.5
    lengths = T * (1 - padded + spread * min(padded, 1 - padded))
    mask = torch.arange(T, device=device) < lengths.round()[:, None]
    rows = zip(hidden, targets, strict=True)
    logp = torch.stack([reference.token_logprobs(h @ weight.T, t).logp for h, t in rows])
    return Batch(hidden, weight, targets, advantages, mask, logp + 0.3 * randn(B, T))


def surrogate(logp: Tensor, batch: Batch) -> Tensor:
    """As trainers write it: the clipped loss, averaged over the batch's tokens."""
    ratio, advantages = (logp - batch.old_logp).exp(), batch.advantages[:, None]
    loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return (loss * batch.mask).sum() / batch.mask.sum()


def fgrpo_step(batch: Batch, level: str = "token") -> Step:
    weights = token_weights(batch.mask)

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_grpo_loss(
            hidden, weight, batch.targets, batch.advantages, weights,
            old_logp=batch.old_logp, objective=PPOClip(level=level),
        ).loss  # fmt: skip

    return step


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


def liger_step(batch: Batch, *, compiled: bool = True) -> Step:
    """Liger's chunked loss, one sequence a chunk, as it comes."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    torch._dynamo.reset()  # what it compiled for another shape makes it fail on this one

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=compiled, use_ref_model=False, loss_type="dapo", epsilon_low=0.2, epsilon_high=0.2
    )

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        mask = batch.mask.to(hidden.dtype)
        return loss(hidden, weight, batch.targets, mask, batch.advantages, old_per_token_logps=batch.old_logp)[0]

    return step


def gradients_of(step: Step, batch: Batch, *, frozen: bool = False) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of one step, to be timed."""
    hidden, weight = batch.hidden.detach().requires_grad_(), batch.weight.detach().requires_grad_(not frozen)
    leaves = (hidden,) if frozen else (hidden, weight)
    return lambda: torch.autograd.grad(step(hidden, weight), leaves)


def check(make: Callable[[Batch], Step], device: str, dtype: torch.dtype, bound: float) -> None:
    """Gradients of a small batch against float64; a wrong contender is not timed."""
    batch = make_batch((4, 24, 64, 3_000), device=device, dtype=dtype, padded=0.5, degenerate=0.25)
    exact = gradients_of(eager_step(batch), batch._replace(hidden=batch.hidden.double(), weight=batch.weight.double()))
    for name, ours, expected in zip(("hidden", "weight"), gradients_of(make(batch), batch)(), exact(), strict=True):
        error = relative_error(ours, expected)
        assert error < bound, f"gradient of {name}: relative error {error:.1e}"
