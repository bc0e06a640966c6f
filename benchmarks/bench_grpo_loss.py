"""The loss and its gradient from [8192, 151936] bfloat16 logits, against eager PyTorch, torch.compile and Liger.

    python benchmarks/bench_grpo_loss.py

Bytes that must move: token level, the logits read once (the second read comes from cache) and written once; sequence
level, read twice and written once. A row without weight is written once and not read, so with half the rows weightless
three quarters of the bytes remain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import Record, attempt, copy_bandwidth, measure, relative_error, write
from torch import Tensor

from fgrpo_kernels import PPOClip, grpo_loss, reference, token_weights

B, T, V = 8, 1024, 151_936
Step = Callable[[Tensor], Tensor]  # logits [B, T, V] -> scalar loss


def inputs(batch: int, length: int) -> dict[str, Any]:
    """Realistic: off policy, both signs of the advantage."""
    logits = (3 * torch.randn(batch, length, V, device="cuda")).bfloat16()
    targets = torch.randint(V, (batch, length), device="cuda")
    rows = zip(logits, targets, strict=True)
    logp = torch.stack([reference.token_logprobs(x, t).logp for x, t in rows])
    return {
        "logits": logits.requires_grad_(),
        "targets": targets,
        "advantages": torch.randn(batch, device="cuda"),
        "weights": token_weights(torch.ones(batch, length, device="cuda")),
        "old_logp": logp + 0.3 * torch.randn_like(logp),
    }


def fgrpo_step(data: dict[str, Any], level: str) -> Step:
    arguments = {k: x for k, x in data.items() if k != "logits"} | {"objective": PPOClip(level=level)}
    return lambda logits: grpo_loss(logits, **arguments).loss


def eager_step(data: dict[str, Any], level: str) -> Step:
    """As trainers write it. (The reference leaves rows out by index, which eager code does not.)"""

    def step(logits: Tensor) -> Tensor:
        logp = logits.float().log_softmax(-1).gather(-1, data["targets"][..., None]).squeeze(-1)
        log_ratio = logp - data["old_logp"]
        if level == "sequence":
            log_ratio = log_ratio.mean(1, keepdim=True)
        ratio, advantages = log_ratio.exp(), data["advantages"][:, None]
        return (data["weights"] * -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)).sum()

    return step


def liger_step(data: dict[str, Any], level: str) -> Step:
    """Liger's Triton loss, which takes the logits with one row more."""
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    mask = torch.ones_like(data["targets"])

    def step(logits: Tensor) -> Tensor:
        longer = torch.nn.functional.pad(logits, (0, 0, 0, 1)) if logits.shape[1] == mask.shape[1] else logits
        result = triton_grpo_loss(
            longer, data["old_logp"], None, data["targets"], data["advantages"], mask,
            temperature=1.0, beta=0.0, eps_low=0.2, eps_high=0.2, inplace=False, loss_type="dapo",
            importance_sampling_level=level, reduce=True,
        )  # fmt: skip
        return result[0]

    return step


def check(make: Callable[[dict[str, Any], str], Step], level: str) -> None:
    """Loss and gradient of a small batch against float64."""
    data = inputs(2, 33)
    logits = data["logits"]
    (gradient,) = torch.autograd.grad(make(data, level)(logits), logits)
    exact_logits = logits.detach().double().requires_grad_()
    arguments = {k: x for k, x in data.items() if k != "logits"} | {"objective": PPOClip(level=level)}
    exact = reference.grpo_loss(exact_logits, **arguments).loss
    (expected,) = torch.autograd.grad(exact, exact_logits)
    assert relative_error(gradient, expected) < 1e-2, f"gradient, {level}"


def forward_and_backward(step: Step, logits: Tensor) -> Callable[[], None]:
    def run() -> None:
        torch.autograd.grad(step(logits), logits)

    return run


def bench(bandwidth: float) -> list[Record]:
    data = inputs(B, T)
    logits, size = data["logits"], data["logits"].nbytes
    records: list[Record] = []
    makers = {
        "fgrpo": fgrpo_step,
        "eager": eager_step,
        "torch.compile": lambda data, level: torch.compile(eager_step(data, level)),
        "Liger": liger_step,
    }
    for level, passes in (("token", 2), ("sequence", 3)):
        for name, make in makers.items():

            def timed(name: str = name, make: Any = make, level: str = level, passes: int = passes) -> Record:
                check(make, level)
                longer = logits
                if name == "Liger":  # give it its extra row outside the timed region
                    longer = torch.nn.functional.pad(logits.detach(), (0, 0, 0, 1)).requires_grad_()
                run = forward_and_backward(make(data, level), longer)
                context = {"moved": passes * size, "bandwidth": bandwidth, "shape": [B, T, V], "level": level}
                return measure(f"{name}: {level} level, forward + backward", run, **context)

            records.append(attempt(f"{name}: {level} level, forward + backward", timed))
            torch.cuda.empty_cache()

    half = data | {"weights": data["weights"] * (torch.arange(T, device="cuda") % 2)}
    run = forward_and_backward(fgrpo_step(half, "token"), logits)
    name = "fgrpo: token level, half the rows weightless"
    records.append(measure(name, run, moved=size * 3 // 2, bandwidth=bandwidth, shape=[B, T, V]))
    return records


if __name__ == "__main__":
    limit = copy_bandwidth()
    print(write("grpo_loss", bench(limit), copy_bytes_per_second=limit))
