"""log p and entropy of rows of logits, forwards and backwards.

Bytes that must move: the logits once forwards; read once and written once backwards.

N token rows   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels import reference, token_logprobs
from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, Shape, require_close
from fgrpo_kernels.bench.shapes import dtype_of, head_of, name_of

CHECKED = 64  # rows
Op = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # logits [N, V], targets [N] -> log p, entropy [N]


class Rows(NamedTuple):
    logits: Tensor
    targets: Tensor
    slopes: Tensor  # of a loss, by log p


def cases(options: Options) -> Iterator[Case]:
    rows = options.rows or (8192 if options.on_gpu else 512)
    vocabulary, dtype = head_of(options).vocabulary, dtype_of(options)
    size = rows * vocabulary * dtype.itemsize
    bound = 1e-3 if dtype == torch.float32 else 1e-2
    ops: dict[str, Callable[[], Op]] = {
        "fgrpo": lambda: token_logprobs,
        "eager": lambda: reference.token_logprobs,
        "compile": lambda: torch.compile(reference.token_logprobs),
        "trl": _trl,
    }

    def inputs(count: int = rows) -> Rows:
        generator = torch.Generator(options.device).manual_seed(0)
        logits = torch.randn(count, vocabulary, generator=generator, device=options.device, dtype=dtype).mul_(3)
        targets = torch.randint(vocabulary, (count,), generator=generator, device=options.device)
        slopes = torch.randn(count, generator=generator, device=options.device)
        return Rows(logits.requires_grad_(), targets, slopes)

    def check_values(make: Maker) -> None:
        data = inputs(CHECKED)
        exact = reference.token_logprobs(data.logits.detach().double(), data.targets)
        for name, ours, expected in zip(("logp", "entropy"), make(data)(), exact, strict=True):
            require_close(name, ours, expected, 1e-3)

    def check_gradient(make: Maker) -> None:
        data = inputs(CHECKED)
        exact = data._replace(logits=data.logits.detach().double().requires_grad_())
        (expected,) = _backward(lambda: reference.token_logprobs)(exact)()
        (ours,) = make(data)()
        require_close("gradient", ours, expected, bound)

    shape: Shape = {"rows": rows, "vocabulary": vocabulary, "dtype": name_of(dtype)}
    forward = {name: _forward(op_of) for name, op_of in ops.items()}
    yield Case("forward", inputs, forward, check_values, shape, moved=size)
    backward = {name: _backward(op_of) for name, op_of in ops.items()}
    yield Case("backward", inputs, backward, check_gradient, shape, moved=2 * size)


def _trl() -> Op:
    """TRL's fused kernel where it takes the tensors, which is on a GPU; else what TRL does there."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    def op(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if logits.device.type == "cpu":
            return selective_log_softmax(logits, targets), entropy_from_logits(logits)
        try:
            from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy
        except ImportError as error:
            raise NotHereError(f"this TRL has no kernel for it: {error}") from None
        return tuple(selective_log_softmax_and_entropy(logits, targets))  # type: ignore[return-value]

    return op


def _forward(op_of: Callable[[], Op]) -> Maker:
    def make(data: Rows) -> Run:
        torch._dynamo.reset()
        op = op_of()

        def run() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                return op(data.logits, data.targets)

        return run

    return make


def _backward(op_of: Callable[[], Op]) -> Maker:
    def make(data: Rows) -> Run:
        torch._dynamo.reset()
        logp, entropy = op_of()(data.logits, data.targets)
        total = (data.slopes * logp).sum() + 0.01 * (data.slopes * entropy).sum()
        return lambda: torch.autograd.grad(total, data.logits, retain_graph=True)

    return make
