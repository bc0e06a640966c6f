"""GRPO on one client between two rounds: rollouts, rewards, advantages, loss, update."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fgrpo.client.loss_batches import LossBatch, Minibatch, loss_batches
from fgrpo.client.masters import Masters
from fgrpo.client.owners import Client, Question
from fgrpo.client.policy import Policy
from fgrpo.config import Config
from fgrpo.records import Report, Rollouts
from fgrpo.seeds import derive_seed, seeded
from fgrpo.stopwatch import Stopwatch
from fgrpo_kernels import GroupAdvantages, GRPOLoss, PPOClip, group_advantages, token_weights


@dataclass
class Tally:
    """What a report is made of, collected step by step; numbers stay on the device until the end."""

    rewards: list[Tensor] = field(default_factory=list)
    degenerate: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    metrics: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add_rollouts(self, rollouts: Rollouts, rewards_B: Tensor, advantages: GroupAdvantages) -> None:
        self.rewards.append(rewards_B)
        self.degenerate.append(advantages.degenerate)
        self.tokens.append(rollouts.mask_BT.sum())

    def add_metrics(self, metrics: Mapping[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.metrics[name].append(value)

    def report(self, client: str, round_number: int, stopwatch: Stopwatch) -> Report:
        rewards = torch.cat(self.rewards)
        tokens = int(torch.stack(self.tokens).sum())
        return Report(
            client=client,
            round=round_number,
            sequences=len(rewards),
            tokens=tokens,
            reward_mean=rewards.mean().item(),
            reward_std=rewards.std().item(),
            completion_length=tokens / len(rewards),
            degenerate=torch.cat(self.degenerate).float().mean().item(),
            metrics={name: torch.stack(values).double().mean().item() for name, values in self.metrics.items()},
            seconds=dict(stopwatch.seconds),
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
    return tally.report(client.name, round_number, stopwatch)


def roll_out(
    policy: Policy, client: Client, config: Config, batch: int, stopwatch: Stopwatch, tally: Tally
) -> tuple[Rollouts, Tensor]:
    """Sample and reward a client's rollout batch of this number; return it with its advantages, float32 [B]."""
    train, rollout = config.train, config.rollout
    with stopwatch("rollout"):
        questions = client.draw(batch * rollout.prompts_per_step, rollout.prompts_per_step)
        prompts = [question.example.prompt for question in questions]
        rollouts = policy.sample(prompts, rollout, derive_seed(config.seed, client.name, "rollout", batch))
    with stopwatch("reward"):
        rewards_B = _rewards(client, questions, rollouts, rollout.group_size)
        advantages = group_advantages(
            rewards_B, rollout.group_size, scale=train.advantage_scale, baseline=train.baseline
        )
    tally.add_rollouts(rollouts, rewards_B, advantages)
    return rollouts, advantages.advantages.to(policy.device)


def _rewards(client: Client, questions: list[Question], rollouts: Rollouts, group_size: int) -> Tensor:
    return torch.tensor(
        [client.reward(questions[i // group_size], text) for i, text in enumerate(rollouts.completions)],
        dtype=torch.float32,
    )


def minibatches(policy: Policy, rollouts: Rollouts, advantages_B: Tensor, config: Config) -> list[list[LossBatch]]:
    """Return what enters the model, one part an optimiser step."""
    parts = []
    for minibatch in cut(rollouts, advantages_B, config):
        batches = loss_batches(minibatch, config.train, share=policy.shares_prefixes)
        parts.append(with_references(policy, batches, config))
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
