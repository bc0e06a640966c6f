"""Advantages of 1024 completions in groups of 8.

A few kilobytes: all of it is the time of calls, and on a GPU of launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fgrpo_kernels import GroupAdvantages, group_advantages, reference
from fgrpo_kernels.bench.case import Case, Maker, Options, Run, compiled, require_close

COMPLETIONS, GROUP = 1024, 8
Op = Callable[[Tensor, int], GroupAdvantages]


def cases(options: Options) -> Iterator[Case]:
    def inputs() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 5, (COMPLETIONS,), generator=generator).float().to(options.device)

    def check(make: Maker) -> None:
        rewards = inputs()
        expected = reference.group_advantages(rewards.double(), GROUP).advantages
        require_close("advantages", make(rewards)(), expected, 1e-5)

    yield Case(
        name="forward",
        inputs=inputs,
        contenders={
            "fgrpo": _maker(lambda: group_advantages),
            "eager": _maker(lambda: reference.group_advantages),
            "compile": _maker(lambda: compiled(reference.group_advantages)),
        },
        check=check,
        shape={"completions": COMPLETIONS, "group": GROUP},
    )


def _maker(op_of: Callable[[], Op]) -> Maker:
    def make(rewards: Tensor) -> Run:
        op = op_of()
        return lambda: op(rewards, GROUP).advantages

    return make
