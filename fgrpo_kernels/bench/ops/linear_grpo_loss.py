"""The LM head fused with the loss, forward and backward: every contender takes the same hidden states.

The products that must be made: the logits, dH and dW of the rows that carry signal.

B sequences   T tokens   H hidden size   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fgrpo_kernels.bench.case import Case, Maker, Options, Shape, require_close
from fgrpo_kernels.bench.ops import head_contenders as head
from fgrpo_kernels.bench.shapes import dtype_of, head_of, name_of

CHECKED = (4, 24, 64, 3_000)  # B, T, H, V


def cases(options: Options) -> Iterator[Case]:
    rows = options.rows or (8192 if options.on_gpu else 2048)
    tokens = min(rows, 1024 if options.on_gpu else 128)
    sequences = rows // tokens
    hidden, vocabulary = head_of(options)
    dtype = dtype_of(options)
    shape: Shape = {
        "sequences": sequences,
        "tokens": tokens,
        "hidden": hidden,
        "vocabulary": vocabulary,
        "dtype": name_of(dtype),
    }
    full = (sequences, tokens, hidden, vocabulary)

    def batch(padded: float, degenerate: float, shape: tuple[int, int, int, int] = full) -> head.Batch:
        return head.make_batch(shape, device=options.device, dtype=dtype, padded=padded, degenerate=degenerate)

    def case(name: str, contenders: dict[str, Maker], padded: float, degenerate: float, frozen: bool = False) -> Case:
        informative = head.informative(full, padded, degenerate)
        return Case(
            name=name,
            inputs=lambda: batch(padded, degenerate),
            contenders=contenders,
            check=lambda make: _check(make, lambda: batch(0.5, 0.25, CHECKED), frozen),
            shape={**shape, "informative": informative},
            operations=(2 if frozen else 3) * 2 * informative * hidden * vocabulary,
        )

    yield case("half padding, a third degenerate", head.contenders(), padded=0.5, degenerate=1 / 3)
    yield case("every row informative", head.contenders(), padded=0.0, degenerate=0.0)
    yield case("frozen head", head.contenders(frozen=True), padded=0.0, degenerate=0.0, frozen=True)
    yield Case(
        name="cross-entropy",
        inputs=lambda: batch(0.0, 0.0),
        contenders=head.cross_entropy_contenders(),
        check=lambda make: _check_cross_entropy(make, lambda: batch(0.0, 0.0, CHECKED)),
        shape=shape,
        operations=6 * sequences * tokens * hidden * vocabulary,
    )


def _check(make: Maker, batch_of: Callable[[], head.Batch], frozen: bool) -> None:
    """Gradients against float64's."""
    data = batch_of()
    exact = data._replace(hidden=data.hidden.double(), weight=data.weight.double())
    _compare(make(data)(), head.gradients(head.eager_step, frozen)(exact)(), data.hidden.dtype)


def _check_cross_entropy(make: Maker, batch_of: Callable[[], head.Batch]) -> None:
    data = batch_of()
    exact = data._replace(hidden=data.hidden.double(), weight=data.weight.double())
    _compare(make(data)(), head.gradients(head.eager_cross_entropy)(exact)(), data.hidden.dtype)


def _compare(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for name, gradient, expected in zip(("hidden", "weight"), ours, exact, strict=False):
        require_close(f"gradient of {name}", gradient, expected, 1e-4 if dtype == torch.float32 else 2e-2)
