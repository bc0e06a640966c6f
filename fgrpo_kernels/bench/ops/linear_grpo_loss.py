"""The LM head fused with the loss, forward and backward: every contender takes the same hidden states.

The products that must be made: the logits, dH and dW of the rows that carry signal.

B sequences   T tokens   H hidden size   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fgrpo_kernels.bench.case import Case, Maker, Options, require_close
from fgrpo_kernels.bench.ops import head_contenders as head
from fgrpo_kernels.bench.shapes import dtype_of, head_of, name_of

CHECKED = (4, 24, 64, 3_000)  # B, T, H, V


def cases(options: Options) -> Iterator[Case]:
    rows = options.rows or (8192 if options.on_gpu else 2048)
    tokens = min(rows, 1024 if options.on_gpu else 128)
    sequences = rows // tokens
    shape = (sequences, tokens, *head_of(options))
    named = f"LM head, loss and gradients: {sequences} x {tokens} tokens, half padding, H {shape[2]}, V {shape[3]:,}"
    everyone, frozen = head.contenders(), head.contenders(frozen=True)
    few = {name: everyone[name] for name in ("fgrpo", "eager", "trl, completions only")}
    yield _case("half padding, a third degenerate", options, shape, everyone, 0.5, 1 / 3, in_readme=named)
    # On a CPU some of the others take seconds a call, and a minute to compile.
    sequences = sequences if options.on_gpu else max(1, sequences // 2)
    shape = (sequences, *shape[1:])
    yield _case("every row informative", options, shape, everyone if options.on_gpu else few)
    for fewer in (sequences // 4, sequences // 2):
        if fewer >= 1:
            yield _case(f"every row informative, {fewer * tokens} rows", options, (fewer, *shape[1:]), few)
    yield _case("frozen head", options, shape, {name: frozen[name] for name in few}, frozen=True)
    yield _case("cross-entropy", options, shape, head.cross_entropy_contenders(), exact=head.eager_cross_entropy)


def _case(
    name: str,
    options: Options,
    shape: tuple[int, int, int, int],
    contenders: dict[str, Maker],
    padded: float = 0.0,
    degenerate: float = 0.0,
    *,
    frozen: bool = False,
    exact: Callable[[head.Batch], head.Step] = head.eager_step,
    in_readme: str | None = None,
) -> Case:
    sequences, tokens, hidden, vocabulary = shape
    dtype, rows = dtype_of(options), head.informative(shape, padded, degenerate)

    def batch(shape: tuple[int, int, int, int], padded: float, degenerate: float) -> head.Batch:
        return head.make_batch(shape, device=options.device, dtype=dtype, padded=padded, degenerate=degenerate)

    def check(make: Maker) -> None:
        """Gradients against float64's."""
        data = batch(CHECKED, min(padded, 0.5), min(degenerate, 0.25))
        double = data._replace(hidden=data.hidden.double(), weight=data.weight.double())
        expected, ours = head.gradients(exact, frozen)(double)(), make(data)()
        for what, gradient, right in zip(("hidden", "weight"), ours, expected, strict=False):  # no weight if frozen
            require_close(f"gradient of {what}", gradient, right, 1e-4 if dtype == torch.float32 else 2e-2)

    return Case(
        name=name,
        inputs=lambda: batch(shape, padded, degenerate),
        contenders=contenders,
        check=check,
        shape={
            "sequences": sequences,
            "tokens": tokens,
            "hidden": hidden,
            "vocabulary": vocabulary,
            "informative": rows,
            "dtype": name_of(dtype),
        },
        operations=(2 if frozen else 3) * 2 * rows * hidden * vocabulary,
        in_readme=in_readme,
    )
