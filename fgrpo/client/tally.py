"""What a client's report is made of."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fgrpo.client.owner import Client
from fgrpo.client.tasks.scoring import Scores
from fgrpo.errors import TaskError
from fgrpo.records import Report, Rollouts
from fgrpo.stopwatch import Stopwatch
from fgrpo_kernels import GroupAdvantages


@dataclass
class Tally:
    """What a report is made of, collected step by step; numbers stay on the device until the end."""

    rewards: list[Tensor] = field(default_factory=list)
    degenerate: list[Tensor] = field(default_factory=list)
    informative: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: int = 0
    failure: str = ""
    cause: BaseException | None = None  # of this first failure
    metrics: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add_rollouts(self, rollouts: Rollouts, rewards_B: Tensor, advantages: GroupAdvantages, scores: Scores) -> None:
        self.rewards.append(rewards_B)
        self.degenerate.append(advantages.degenerate)
        taught_B = ~advantages.degenerate.repeat_interleave(len(rewards_B) // len(advantages.degenerate))
        self.informative.append((taught_B & ~rewards_B.isnan()).sum())
        self.tokens.append(rollouts.mask_BT.sum())
        for name, values in scores.parts.items():
            self.parts[name] += [value for value in values if not math.isnan(value)]
        if not self.failure:
            self.failure, self.cause = scores.failure, scores.cause
        self.failures += scores.failures

    def add_metrics(self, metrics: Mapping[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.metrics[name].append(value)

    def report(self, client: Client, round_number: int, stopwatch: Stopwatch) -> Report:
        rewards = torch.cat(self.rewards)
        known = rewards[~rewards.isnan()]
        if len(known) == 0:
            failure = f": {self.failure}" if self.failure else ""
            raise TaskError(f"none of {len(rewards)} completions got a reward{failure}") from self.cause
        tokens = int(torch.stack(self.tokens).sum())
        metrics = _means(self.metrics)
        if len(self.parts) > 1:
            metrics |= {f"reward/{name}": sum(values) / len(values) for name, values in self.parts.items() if values}
        return Report(
            client=client.name,
            round=round_number,
            sequences=len(known),
            tokens=tokens,
            reward_mean=known.mean().item(),
            reward_std=known.std().item() if len(known) > 1 else 0.0,
            completion_length=tokens / len(known),
            degenerate=torch.cat(self.degenerate).float().mean().item(),
            metrics=metrics,
            seconds=dict(stopwatch.seconds),
            rows=client.rows,
            unrewarded=len(rewards) - len(known),
            reward_failures=self.failures,
            reward_failure=self.failure,
            informative=int(torch.stack(self.informative).sum()),
            groups=sum(map(len, self.degenerate)),
        )


def _means(metrics: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """The mean of each, brought from the device in one transfer."""
    if not metrics:
        return {}
    means = torch.stack([torch.stack(values).double().mean() for values in metrics.values()])
    return dict(zip(metrics, means.tolist(), strict=True))
