"""GRPO on one client between two rounds: rollouts, rewards, advantages, loss, update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fgrpo.client.owners import Client, Question
from fgrpo.client.policy import Policy
from fgrpo.client.tasks.scoring import Scores
from fgrpo.config import Config
from fgrpo.errors import TaskError
from fgrpo.records import Report, Rollouts
from fgrpo.seeds import derive_seed, seeded
from fgrpo.stopwatch import Stopwatch
from fgrpo_kernels import GroupAdvantages, GRPOLoss, PPOClip, group_advantages, token_weights


@dataclass
class _Tally:
    """What a report is made of, collected step by step."""

    rewards: list[Tensor] = field(default_factory=list)
    degenerate: list[Tensor] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tokens: int = 0
    failures: int = 0
    failure: str = ""
    metrics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add_rollouts(self, rollouts: Rollouts, rewards_B: Tensor, advantages: GroupAdvantages, scores: Scores) -> None:
        self.rewards.append(rewards_B)
        self.degenerate.append(advantages.degenerate)
        self.tokens += int(rollouts.mask_BT.sum())
        for name, values in scores.parts.items():
            self.parts[name] += [value for value in values if not math.isnan(value)]
        self.failures, self.failure = self.failures + scores.failures, self.failure or scores.failure

    def report(self, client: Client, round_number: int, stopwatch: Stopwatch) -> Report:
        rewards = torch.cat(self.rewards)
        known = rewards[~rewards.isnan()]
        if len(known) == 0:
            raise TaskError(f"none of {len(rewards)} completions got a reward{self.failure and f': {self.failure}'}")
        metrics = {name: sum(values) / len(values) for name, values in self.metrics.items()}
        if len(self.parts) > 1:
            metrics |= {f"reward/{name}": sum(values) / len(values) for name, values in self.parts.items() if values}
        return Report(
            client=client.name,
            round=round_number,
            sequences=len(known),
            tokens=self.tokens,
            reward_mean=known.mean().item(),
            reward_std=known.std().item() if len(known) > 1 else 0.0,
            completion_length=self.tokens / len(known),
            degenerate=torch.cat(self.degenerate).float().mean().item(),
            metrics=metrics,
            seconds=dict(stopwatch.seconds),
            rows=client.rows,
            unrewarded=len(rewards) - len(known),
            reward_failures=self.failures,
            reward_failure=self.failure,
        )


def train_locally(policy: Policy, client: Client, config: Config, round_number: int, stopwatch: Stopwatch) -> Report:
    """Train `policy.model` in place on the client's own prompts for one round.

    Everything random follows from the run's seed, the client and the round; the optimiser starts afresh, so a client
    carries nothing from round to round but its compression residual.
    """
    train, tally = config.train, _Tally()
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=train.lr, weight_decay=train.weight_decay)
    for step in range(train.local_steps):
        batch = (round_number - 1) * train.local_steps + step
        with stopwatch("rollout"):
            questions = client.draw(batch * config.rollout.prompts_per_step, config.rollout.prompts_per_step)
            prompts = [question.example.prompt for question in questions]
            seed = derive_seed(config.seed, client.name, "rollout", batch)
            rollouts = policy.sample(prompts, config.rollout, seed)
        with stopwatch("reward"):
            scores = _scores(client, questions, rollouts, config.rollout.group_size)
            rewards_B = client.reward_scale * torch.tensor(scores.values, dtype=torch.float32)
            # A completion without a reward is no part of the batch: neither of its group nor of any token's weight.
            rollouts = rollouts.without(rewards_B.isnan().to(policy.device))
        # Dropout, where a model has it, draws from torch's generator.
        with stopwatch("train"), seeded(policy.device, derive_seed(config.seed, client.name, "train", batch)):
            advantages = group_advantages(
                rewards_B, config.rollout.group_size, scale=train.advantage_scale, baseline=train.baseline
            )
            tally.add_rollouts(rollouts, rewards_B, advantages, scores)
            for loss in _losses(policy, rollouts, advantages.advantages.to(policy.device), config):
                optimizer.zero_grad()
                loss.loss.backward()
                if train.max_grad_norm > 0:
                    norm = torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
                    tally.metrics["grad_norm"].append(norm.item())
                optimizer.step()
                tally.metrics["loss"].append(loss.loss.item())
                for name, value in loss.metrics.items():
                    if name != "informative":  # 1 by construction here; `Report.degenerate` tells
                        tally.metrics[name].append(value.item())
    policy.model.eval()
    return tally.report(client, round_number, stopwatch)


def _scores(client: Client, questions: list[Question], rollouts: Rollouts, group_size: int) -> Scores:
    answered = [question for question in questions for _ in range(group_size)]
    return client.scores(answered, rollouts.answers())


def _losses(policy: Policy, rollouts: Rollouts, advantages_B: Tensor, config: Config) -> Iterator[GRPOLoss]:
    """Yield the loss of every minibatch of every pass; the caller takes an optimiser step between two of them.

    Sequences without signal (advantage 0, and neither a KL nor an entropy term) do not enter the model: they count in
    the normalisation and give no gradient. A minibatch without any signal yields nothing.
    """
    train = config.train
    ref_logp_BT = policy.reference_logp(rollouts, config.rollout.temperature) if train.beta > 0 else None
    has_signal_B = advantages_B != 0 if train.beta == train.entropy_coef == 0 else torch.ones_like(advantages_B).bool()
    rows_per_part = -(-config.rollout.prompts_per_step // train.minibatches) * config.rollout.group_size
    policy.model.train()
    for _ in range(train.updates_per_rollout):
        for part in torch.arange(len(advantages_B), device=advantages_B.device).split(rows_per_part):
            weights_BT = token_weights(
                rollouts.mask_BT[part], train.reduction, max_length=config.rollout.max_new_tokens
            )
            informative = has_signal_B[part]
            rows = part[informative]
            if len(rows) == 0:
                continue
            batch = rollouts.rows(rows)
            yield policy.loss(
                batch,
                advantages_B[rows],
                weights_BT[informative],
                mask=batch.mask_BT,
                old_logp=batch.old_logp_BT,
                ref_logp=None if ref_logp_BT is None else ref_logp_BT[rows],
                objective=PPOClip(low=train.clip_low, high=train.clip_high, level=train.level),
                beta=train.beta,
                entropy_coef=train.entropy_coef,
                temperature=config.rollout.temperature,
            )
