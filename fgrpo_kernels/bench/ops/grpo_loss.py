"""The loss and its gradient from logits.

Bytes that must move: token level, the logits read once (the second read comes from cache) and written once; sequence
level, read twice and written once. A row without weight is written once and not read, so with half the rows weightless
three quarters of the bytes remain.

B sequences   T tokens   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels import PPOClip, grpo_loss, reference, token_weights
from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, Shape, compiled, require_close
from fgrpo_kernels.bench.shapes import dtype_of, head_of, name_of

CHECKED = (2, 33)  # sequences, tokens
PASSES = {"token": 2, "sequence": 3}
Step = Callable[[Tensor], Tensor]  # logits [B, T, V] -> scalar loss


class Batch(NamedTuple):
    """Off policy, with both signs of the advantage."""

    logits: Tensor  # [B, T, V]
    targets: Tensor  # [B, T]
    advantages: Tensor  # [B]
    weights: Tensor  # [B, T]
    old_logp: Tensor  # [B, T]


def cases(options: Options) -> Iterator[Case]:
    rows = options.rows or (8192 if options.on_gpu else 512)
    tokens = min(rows, 1024 if options.on_gpu else 128)
    sequences = rows // tokens
    vocabulary, dtype = head_of(options).vocabulary, dtype_of(options)
    size = sequences * tokens * vocabulary * dtype.itemsize
    bound = 1e-4 if dtype == torch.float32 else 1e-2

    def inputs(sequences: int = sequences, tokens: int = tokens) -> Batch:
        return make_batch(sequences, tokens, vocabulary, dtype, options.device)

    def half_weightless() -> Batch:
        batch = inputs()
        return batch._replace(weights=batch.weights * (torch.arange(tokens, device=options.device) % 2))

    def check(level: str) -> Callable[[Maker], None]:
        def check_gradient(make: Maker) -> None:
            batch = inputs(*CHECKED)
            exact = batch._replace(logits=batch.logits.detach().double().requires_grad_())
            (expected,) = _maker(_reference, level)(exact)()
            (ours,) = make(batch)()
            require_close("gradient", ours[:, : CHECKED[1]], expected, bound)

        return check_gradient

    shape: Shape = {"sequences": sequences, "tokens": tokens, "vocabulary": vocabulary, "dtype": name_of(dtype)}
    for level, passes in PASSES.items():
        contenders = {
            "fgrpo": _maker(_fgrpo, level),
            "eager": _maker(_eager, level),
            "compile": _maker(lambda batch, level: compiled(_eager(batch, level)), level),
            "liger": _liger(level),
        }
        name = f"{level} level, forward and backward"
        named = f"GRPO loss and gradient, {sequences} x {tokens} logits of {vocabulary:,}" if level == "token" else None
        yield Case(name, inputs, contenders, check(level), shape, moved=passes * size, in_readme=named)
    ours = {"fgrpo": _maker(_fgrpo, "token")}
    name = "token level, half the rows weightless"
    yield Case(name, half_weightless, ours, check("token"), shape, moved=1.5 * size)


def make_batch(sequences: int, tokens: int, vocabulary: int, dtype: torch.dtype, device: str) -> Batch:
    generator = torch.Generator(device).manual_seed(0)

    def randn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=dtype)

    logits = randn(sequences, tokens, vocabulary, dtype=dtype).mul_(3)
    targets = torch.randint(vocabulary, (sequences, tokens), generator=generator, device=device)
    rows = zip(logits, targets, strict=True)
    logp = torch.stack([reference.token_logprobs(x, t).logp for x, t in rows])
    weights = token_weights(torch.ones(sequences, tokens, device=device))
    return Batch(
        logits.requires_grad_(), targets, randn(sequences), weights, logp + 0.3 * randn(sequences, tokens)
    )  # fmt: skip


def _maker(step_of: Callable[[Batch, str], Step], level: str) -> Maker:
    def make(batch: Batch) -> Run:
        step = step_of(batch, level)
        return lambda: torch.autograd.grad(step(batch.logits), batch.logits)

    return make


def _fgrpo(batch: Batch, level: str) -> Step:
    arguments = batch[1:-1]
    objective = PPOClip(level=level)  # type: ignore[arg-type]
    return lambda logits: grpo_loss(logits, *arguments, old_logp=batch.old_logp, objective=objective).loss


def _reference(batch: Batch, level: str) -> Step:
    arguments = batch[1:-1]
    objective = PPOClip(level=level)  # type: ignore[arg-type]
    return lambda logits: reference.grpo_loss(logits, *arguments, old_logp=batch.old_logp, objective=objective).loss


def _eager(batch: Batch, level: str) -> Step:
    """As trainers write it. (The reference leaves rows out by index, which eager code does not.)"""

    def step(logits: Tensor) -> Tensor:
        logp = logits.float().log_softmax(-1).gather(-1, batch.targets[..., None]).squeeze(-1)
        log_ratio = logp - batch.old_logp
        if level == "sequence":
            log_ratio = log_ratio.mean(1, keepdim=True)
        ratio, advantages = log_ratio.exp(), batch.advantages[:, None]
        return (batch.weights * -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)).sum()

    return step


def _liger(level: str) -> Maker:
    """Liger's Triton loss, which takes the logits with one row more: made outside what is timed."""

    def make(batch: Batch) -> Run:
        if batch.logits.device.type == "cpu":
            raise NotHereError("needs a GPU")
        from liger_kernel.transformers.grpo_loss import triton_grpo_loss

        longer = torch.nn.functional.pad(batch.logits.detach(), (0, 0, 0, 1)).requires_grad_()
        mask = torch.ones_like(batch.targets)

        def run() -> tuple[Tensor, ...]:
            result = triton_grpo_loss(
                longer, batch.old_logp, None, batch.targets, batch.advantages, mask,
                temperature=1.0, beta=0.0, eps_low=0.2, eps_high=0.2, inplace=False, loss_type="dapo",
                importance_sampling_level=level, reduce=True,
            )  # fmt: skip
            return torch.autograd.grad(result[0], longer)

        return run

    return make
