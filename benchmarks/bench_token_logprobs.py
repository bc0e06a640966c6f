"""logp and entropy of [8192, 151936] bfloat16 logits, forwards and backwards, against eager PyTorch, torch.compile and
TRL's kernel.

    python benchmarks/bench_token_logprobs.py

Bytes that must move: the logits once forwards; read once and written once backwards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Record, attempt, copy_bandwidth, measure, relative_error, write
from torch import Tensor

from fgrpo_kernels import reference, token_logprobs

N, V = 8192, 151_936
Op = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def trl_op() -> Op:
    """TRL's fused kernel, where it is installed."""
    from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy

    return lambda logits, targets: selective_log_softmax_and_entropy(logits, targets)


def contenders() -> dict[str, Callable[[], Op]]:
    compiled = torch.compile(reference.token_logprobs)
    return {
        "fgrpo": lambda: lambda logits, targets: tuple(token_logprobs(logits, targets)),
        "eager": lambda: lambda logits, targets: tuple(reference.token_logprobs(logits, targets)),
        "torch.compile": lambda: lambda logits, targets: tuple(compiled(logits, targets)),
        "TRL": trl_op,
    }


def check(op: Op, num_rows: int = 64) -> None:
    """Fresh inputs against float64; a wrong contender is not timed."""
    logits = (3 * torch.randn(num_rows, V, device="cuda")).bfloat16().requires_grad_()
    targets = torch.randint(V, (num_rows,), device="cuda")
    exact = reference.token_logprobs(logits.detach().double(), targets)
    logp, entropy = op(logits, targets)
    assert relative_error(logp.detach(), exact.logp) < 1e-3, "logp"
    assert relative_error(entropy.detach(), exact.entropy) < 1e-3, "entropy"


def bench(bandwidth: float) -> list[Record]:
    logits = (3 * torch.randn(N, V, device="cuda")).bfloat16().requires_grad_()
    targets = torch.randint(V, (N,), device="cuda")
    slopes = torch.randn(N, device="cuda")
    records: list[Record] = []
    for name, make in contenders().items():

        def forward(name: str = name, make: Callable[[], Op] = make) -> Record:
            op = make()
            check(op)
            with torch.no_grad():
                run = lambda: op(logits, targets)  # noqa: E731
                return measure(f"{name}: forward", run, moved=logits.nbytes, bandwidth=bandwidth, shape=[N, V])

        def backward(name: str = name, make: Callable[[], Op] = make) -> Record:
            logp, entropy = make()(logits, targets)
            total = (slopes * logp).sum() + 0.01 * (slopes * entropy).sum()

            def run() -> None:
                torch.autograd.grad(total, logits, retain_graph=True)

            return measure(f"{name}: backward", run, moved=2 * logits.nbytes, bandwidth=bandwidth, shape=[N, V])

        records += [attempt(f"{name}: forward", forward), attempt(f"{name}: backward", backward)]
        torch.cuda.empty_cache()
    return records


if __name__ == "__main__":
    limit = copy_bandwidth()
    print(write("token_logprobs", bench(limit), copy_bytes_per_second=limit))
