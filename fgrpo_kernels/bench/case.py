"""What a benchmark is made of: a case is one thing to be done to one set of inputs, by several contenders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]  # one call of what is timed
Shape = Mapping[str, int | str]
Maker = Callable[[Any], Run]  # prepares a contender for a case's inputs; imports what it needs


class NotHereError(Exception):
    """A contender that this machine cannot run; the message says what it needs."""


class WrongResultError(Exception):
    """A contender whose result fails the case's check; the message says by how much."""


@dataclass(frozen=True)
class Case:
    """One thing to be timed.

    Attributes:
        name: unique in its op
        inputs: makes what every maker is given; called once, when the case's turn has come
        contenders: by name, ours first: the others are timed in turns with it. What stands before the first comma of a
            name is the package, as in "trl, completions only".
        check: raises `WrongResultError` unless what the maker's contender computes is right; it may use other inputs
        shape: numbers that the time depends on, by name
        moved: bytes that must move between memory and processor, whoever does it
        operations: floating-point operations of the matrix products that must be made
        work: how many things a call deals with and what they are: ours and theirs are also rates then
        threads: of the CPU, where not the options'
        describe: more to be written down, from a contender's result
        in_readme: what README's table calls this; left out there where None
    """

    name: str
    inputs: Callable[[], Any]
    contenders: Mapping[str, Maker]
    check: Callable[[Maker], None]
    shape: Shape
    moved: float | None = None
    operations: float | None = None
    work: tuple[float, str] | None = None
    threads: int | None = None
    describe: Callable[[Any], Mapping[str, float]] | None = None
    in_readme: str | None = None


@dataclass(frozen=True)
class Options:
    """What a person may choose; None where the op knows better.

    Attributes:
        device: torch's name of it
        dtype: of the logits or the head
        model: a name in `shapes.MODELS`, for hidden size and vocabulary
        rows: tokens
        parameters: elements of a delta
        threads: of the CPU
        simd: the instruction set that our C++ is held to, the others not; the widest there is where None
        against: packages, the first words of contenders' names; every one where None
        only: cases whose name contains this
        seconds: how long a contender and ours beside it are timed
        rounds: how often exactly, instead of `seconds`
    """

    device: str = "cpu"
    dtype: torch.dtype | None = None
    model: str | None = None
    rows: int | None = None
    parameters: int | None = None
    threads: int = field(default_factory=torch.get_num_threads)
    simd: str | None = None
    against: tuple[str, ...] | None = None
    only: str | None = None
    seconds: float = 1.0
    rounds: int | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Under torch.compile, and nothing else compiled: what was, for another shape, would make it more general."""
    torch._dynamo.reset()
    return torch.compile(function)


def package_of(contender: str) -> str:
    return contender.partition(",")[0]


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """`|ours - exact| / |exact|` in float64; NaN never passes a comparison."""
    exact = exact.double()
    return float((ours.double() - exact).norm() / exact.norm())


def require_close(what: str, ours: Tensor, exact: Tensor, bound: float) -> None:
    """Raise `WrongResultError` unless the relative error is below the bound."""
    error = relative_error(ours, exact)
    if not error < bound:
        raise WrongResultError(f"{what}: relative error {error:.1e}, expected below {bound:.0e}")
