"""Advantages of B = 1024 completions in groups of 8, against the reference in eager PyTorch and compiled.

    python benchmarks/bench_group_advantages.py

A few kilobytes: all of it is the time of launches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Record, attempt, measure, write
from torch import Tensor

from fgrpo_kernels import GroupAdvantages, group_advantages, reference

B, GROUP = 1024, 8


def kernel_launches(rewards: Tensor) -> int:
    """How many kernels one call launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        group_advantages(rewards, GROUP)
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.device_type.name == "CUDA")


def bench() -> list[Record]:
    rewards = torch.randint(0, 5, (B,), device="cuda").float()
    expected = reference.group_advantages(rewards.double(), GROUP).advantages
    compiled = torch.compile(reference.group_advantages)
    records = []
    for name, op in {
        "fgrpo": group_advantages,
        "eager": reference.group_advantages,
        "torch.compile": compiled,
    }.items():

        def timed(name: str = name, op: Callable[..., GroupAdvantages] = op) -> Record:
            torch.testing.assert_close(op(rewards, GROUP).advantages.double(), expected, rtol=1e-5, atol=1e-6)
            return measure(name, lambda: op(rewards, GROUP), shape=[B], group_size=GROUP)

        records.append(attempt(name, timed))
    records[0]["kernel_launches"] = kernel_launches(rewards)
    return records


if __name__ == "__main__":
    print(write("group_advantages", bench()))
