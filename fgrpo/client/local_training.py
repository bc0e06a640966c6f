"""GRPO on one client between two rounds: rollouts, rewards, advantages, loss, update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fgrpo.client.loss_batches import LossBatch, Minibatch, loss_batches
from fgrpo.client.masters import Masters
from fgrpo.client.owner import Client, Question
from fgrpo.client.policy import Policy
from fgrpo.client.tasks.scoring import Scores
from fgrpo.config import Config
from fgrpo.errors import TaskError
from fgrpo.records import Report, Rollouts
from fgrpo.seeds import derive_seed, seeded
from fgrpo.stopwatch import Stopwatch
from fgrpo_kernels import GroupAdvantages, GRPOLoss, PPOClip, group_advantages, token_weights


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
        group_size = len(rewards_B) // len(advantages.degenerate)
        taught_B = ~advantages.degenerate.repeat_interleave(group_size) & ~rewards_B.isnan()
        self.informative.append(taught_B.sum())
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
        metrics = {name: torch.stack(values).double().mean().item() for name, values in self.metrics.items()}
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
        )


def train_locally(
    policy: Policy, masters: Masters, client: Client, config: Config, round_number: int, stopwatch: Stopwatch
) -> Report:
    """Train `policy.model` and its masters in place on the client's own prompts for one round.

    Everything random follows from the run's seed, the client and the round; the optimiser starts afresh, so a client
    carries nothing from round to round but its compression residual.
    """
    train, tally = config.train, Tally()
    optimizer = torch.optim.AdamW(masters.parameters, lr=train.lr, weight_decay=train.weight_decay, fused=True)
    for step in range(train.local_steps):
        batch = (round_number - 1) * train.local_steps + step
        rollouts, advantages_B = roll_out(policy, client, config, batch, stopwatch, tally)
        # Dropout, where a model has it, draws from torch's generator.
        with stopwatch("train"), seeded(policy.device, derive_seed(config.seed, client.name, "train", batch)):
            parts = minibatches(policy, rollouts, advantages_B, config)
            policy.model.train()
            for batches in parts * train.updates_per_rollout:
                metrics = backward(policy, batches, config)
                masters.take_gradients()
                if train.max_grad_norm > 0:
                    norm = torch.nn.utils.clip_grad_norm_(masters.parameters, train.max_grad_norm)
                    tally.add_metrics({"grad_norm": norm})
                optimizer.step()
                optimizer.zero_grad()
                masters.write_back()
                tally.add_metrics(metrics)
    policy.model.eval()
    return tally.report(client, round_number, stopwatch)


def roll_out(
    policy: Policy, client: Client, config: Config, batch: int, stopwatch: Stopwatch, tally: Tally
) -> tuple[Rollouts, Tensor]:
    """Sample and reward a client's rollout batch of this number; return it with its advantages, float32 [B].

    A completion without a reward is no part of the batch: neither of its group nor of any token's weight.
    """
    train, rollout = config.train, config.rollout
    with stopwatch("rollout"):
        questions = client.draw(batch * rollout.prompts_per_step, rollout.prompts_per_step)
        prompts = [question.example.prompt for question in questions]
        rollouts = policy.sample(prompts, rollout, derive_seed(config.seed, client.name, "rollout", batch))
    with stopwatch("reward"):
        scores = _scores(client, questions, rollouts, rollout.group_size)
        rewards_B = client.reward_scale * torch.tensor(scores.values, dtype=torch.float32)
        rollouts = rollouts.without(rewards_B.isnan())
        advantages = group_advantages(
            rewards_B, rollout.group_size, scale=train.advantage_scale, baseline=train.baseline
        )
    tally.add_rollouts(rollouts, rewards_B, advantages, scores)
    return rollouts, advantages.advantages


def _scores(client: Client, questions: list[Question], rollouts: Rollouts, group_size: int) -> Scores:
    answered = [question for question in questions for _ in range(group_size)]
    return client.scores(answered, rollouts.answers())


def minibatches(policy: Policy, rollouts: Rollouts, advantages_B: Tensor, config: Config) -> list[list[LossBatch]]:
    """Return what enters the model, one part an optimiser step."""
    parts = []
    for minibatch in cut(rollouts, advantages_B, config):
        batches = loss_batches(minibatch, config.train, share=policy.shares_prefixes)
        parts.append(with_references(policy, [batch.to(policy.device) for batch in batches], config))
    return parts


def cut(rollouts: Rollouts, advantages_B: Tensor, config: Config) -> list[Minibatch]:
    """Cut the rollouts between groups, one part an optimiser step; parts without any signal are left out."""
    train = config.train
    rows_per_part = -(-config.rollout.prompts_per_step // train.minibatches) * config.rollout.group_size
    parts = []
    for part in torch.arange(len(advantages_B), device=advantages_B.device).split(rows_per_part):
        sequences = rollouts.rows(part)
        weights_BT = token_weights(sequences.mask_BT, train.reduction, max_length=config.rollout.max_new_tokens)
        parts.append(Minibatch(sequences, advantages_B[part], weights_BT))
    return [part for part in parts if part.has_signal(train).any()]


def with_references(policy: Policy, batches: list[LossBatch], config: Config) -> list[LossBatch]:
    """Give them the starting model's log-probabilities if the KL term asks for them."""
    if config.train.beta == 0:
        return batches
    return [b.with_reference(policy.reference_logp(b, config.rollout.temperature)) for b in batches]


def backward(policy: Policy, batches: list[LossBatch], config: Config) -> dict[str, Tensor]:
    """Add up the gradients of a minibatch's batches; return its loss and metrics."""
    losses = []
    for batch in batches:
        loss = policy.loss(batch, **loss_options(config))
        loss.loss.backward()
        losses.append(GRPOLoss(loss.loss.detach(), loss.metrics))
    return step_metrics(losses, batches)


def loss_options(config: Config) -> dict[str, Any]:
    """The arguments of `fgrpo_kernels.grpo_loss` that a configuration decides."""
    train = config.train
    return {
        "objective": PPOClip(low=train.clip_low, high=train.clip_high, level=train.level),
        "beta": train.beta,
        "entropy_coef": train.entropy_coef,
        "temperature": config.rollout.temperature,
    }


def step_metrics(losses: list[GRPOLoss], batches: list[LossBatch]) -> dict[str, Tensor]:
    """Return loss and metrics of an optimiser step that was computed in these batches."""
    weights = torch.stack([batch.weights_N.sum() for batch in batches])
    merged = _merged([loss.metrics for loss in losses], weights / weights.sum())
    return {"loss": torch.stack([loss.loss for loss in losses]).sum(), **merged}


def _merged(metrics: list[dict[str, Tensor]], shares: Tensor) -> dict[str, Tensor]:
    """The metrics of all batches together; each batch's are means over its weights, or extremes."""
    merged = {}
    for name in metrics[0]:
        values = torch.stack([one[name] for one in metrics])
        if name == "ratio/min":
            merged[name] = values.min()
        elif name == "ratio/max":
            merged[name] = values.max()
        else:
            merged[name] = (values * shares).sum()
    del merged["informative"]  # 1 by construction here; `Report.degenerate` tells
    return merged
