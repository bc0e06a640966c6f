"""log p and entropy of rows of logits, forwards and backwards; for the plots by rows and by vocabulary.

Bytes that must move: the logits once forwards; read once and written once backwards.

N token rows   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels import reference, token_logprobs
from fgrpo_kernels.bench.case import Case, Maker, Options, Run, compiled, require_close
from fgrpo_kernels.bench.shapes import MODELS, dtype_of, head_of, name_of

CHECKED = 64  # rows
SLICE = 4  # rows whose arithmetic stays in a core's cache
Op = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # logits [N, V], targets [N] -> log p, entropy [N]


class Rows(NamedTuple):
    logits: Tensor
    targets: Tensor
    slopes: Tensor  # of a loss, by log p


def cases(options: Options) -> Iterator[Case]:
    rows = options.rows or (8192 if options.on_gpu else 512)
    vocabulary = head_of(options).vocabulary
    ops: dict[str, Callable[[], Op]] = {
        "fgrpo": lambda: token_logprobs,
        "eager": lambda: _eager,
        "eager, in slices": lambda: _in_slices,
        "compile": lambda: compiled(_eager),
        "compile, from sums": lambda: compiled(_from_sums),
        "trl": _trl,
    }
    if options.on_gpu:  # launches, not caches, are what it minds
        del ops["eager, in slices"]
    forward, backward = ({name: maker(op_of) for name, op_of in ops.items()} for maker in (_forward, _backward))
    named = f"log p and entropy of {rows} x {vocabulary:,} logits"
    yield _case("forward", options, rows, vocabulary, forward, in_readme=named)
    yield _case("backward", options, rows, vocabulary, backward, passes=2)
    few = {name: forward[name] for name in ("fgrpo", "eager" if options.on_gpu else "eager, in slices")}
    for fewer in (rows // 16, rows // 8, rows // 4, rows // 2):
        if fewer >= 1:
            yield _case(f"forward, {fewer} rows", options, fewer, vocabulary, few)
    for other in sorted({head.vocabulary for head in MODELS.values()}):
        yield _case(f"forward, vocabulary {other}", options, max(1, rows // 4), other, few)


def _case(
    name: str,
    options: Options,
    rows: int,
    vocabulary: int,
    contenders: dict[str, Maker],
    *,
    passes: int = 1,
    in_readme: str | None = None,
) -> Case:
    dtype = dtype_of(options)

    def inputs(count: int = rows) -> Rows:
        generator = torch.Generator(options.device).manual_seed(0)
        logits = torch.randn(count, vocabulary, generator=generator, device=options.device, dtype=dtype).mul_(3)
        targets = torch.randint(vocabulary, (count,), generator=generator, device=options.device)
        slopes = torch.randn(count, generator=generator, device=options.device)
        return Rows(logits.requires_grad_(), targets, slopes)

    def check(make: Maker) -> None:
        data = inputs(min(rows, CHECKED))
        result = make(data)()
        if passes == 1:
            exact = reference.token_logprobs(data.logits.detach().double(), data.targets)
            for what, ours, expected in zip(("logp", "entropy"), result, exact, strict=True):
                require_close(what, ours, expected, 1e-3)
        else:
            double = data._replace(logits=data.logits.detach().double().requires_grad_())
            (expected,) = _backward(lambda: reference.token_logprobs)(double)()
            require_close("gradient", result[0], expected, 1e-4 if dtype == torch.float32 else 1e-2)

    return Case(
        name=name,
        inputs=inputs,
        contenders=contenders,
        check=check,
        shape={"rows": rows, "vocabulary": vocabulary, "dtype": name_of(dtype)},
        moved=passes * rows * vocabulary * dtype.itemsize,
        in_readme=in_readme,
    )


def _eager(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As trainers write it."""
    log_probs = logits.float().log_softmax(-1)
    return log_probs.gather(-1, targets[:, None]).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)


def _from_sums(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """No log of each probability: faster than `_eager` forwards, and slower backwards."""
    logits = logits.float()
    peak = logits.amax(-1, keepdim=True)
    exps = (logits - peak).exp()
    sums = exps.sum(-1)
    log_sum = sums.log() + peak.squeeze(-1)
    return logits.gather(-1, targets[:, None]).squeeze(-1) - log_sum, log_sum - (exps * logits).sum(-1) / sums


def _in_slices(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    parts = [_from_sums(*part) for part in zip(logits.split(SLICE), targets.split(SLICE), strict=True)]
    logp, entropy = zip(*parts, strict=True)
    return torch.cat(logp), torch.cat(entropy)


def _trl() -> Op:
    """TRL's fused kernel where it takes the tensors, which is on a GPU; else what TRL does there."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    def op(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if logits.device.type == "cpu":
            return selective_log_softmax(logits, targets), entropy_from_logits(logits)
        from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy

        return tuple(selective_log_softmax_and_entropy(logits, targets))  # type: ignore[return-value]

    return op


def _forward(op_of: Callable[[], Op]) -> Maker:
    def make(data: Rows) -> Run:
        op = op_of()

        def run() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                return op(data.logits, data.targets)

        return run

    return make


def _backward(op_of: Callable[[], Op]) -> Maker:
    def make(data: Rows) -> Run:
        logp, entropy = op_of()(data.logits, data.targets)
        total = (data.slopes * logp).sum() + 0.01 * (data.slopes * entropy).sum()
        return lambda: torch.autograd.grad(total, data.logits, retain_graph=True)

    return make
