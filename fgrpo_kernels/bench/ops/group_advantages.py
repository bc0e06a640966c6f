"""Advantages of 1024 completions in groups of 8.

A few kilobytes: all of it is the time of calls, and on a GPU of launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fgrpo_kernels import group_advantages, reference
from fgrpo_kernels.bench.case import Case, Maker, Options, Run, compiled, require_close

COMPLETIONS, GROUP = 1024, 8
Op = Callable[[Tensor], Tensor]


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
            "fgrpo": _maker(lambda: lambda rewards: group_advantages(rewards, GROUP).advantages),
            "eager": _maker(lambda: _eager),
            "compile": _maker(lambda: compiled(_eager)),
        },
        check=check,
        shape={"completions": COMPLETIONS, "group": GROUP},
    )


def _maker(op_of: Callable[[], Op]) -> Maker:
    def make(rewards: Tensor) -> Run:
        op = op_of()
        return lambda: op(rewards)

    return make


def _eager(rewards: Tensor) -> Tensor:
    """As trainers write it: float32, nothing checked, groups of one size, every reward there."""
    groups = rewards.view(-1, GROUP)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1)
