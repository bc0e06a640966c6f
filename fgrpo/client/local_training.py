"""GRPO on one client between two rounds: rollouts, rewards, advantages, loss, update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrpo.client.loss_batches import LossBatch, Minibatch, loss_batches
from fgrpo.client.masters import Masters
from fgrpo.client.owner import Client
from fgrpo.client.policy import Policy
from fgrpo.client.proximal import add_proximal, anchors
from fgrpo.client.rollout_batches import roll_out
from fgrpo.client.tally import Tally
from fgrpo.config import Config
from fgrpo.records import Report, Rollouts
from fgrpo.seeds import derive_seed, seeded
from fgrpo.stopwatch import Stopwatch
from fgrpo_kernels import GRPOLoss, PPOClip, token_weights


def train_locally(
    policy: Policy, masters: Masters, client: Client, config: Config, round_number: int, stopwatch: Stopwatch
) -> Report:
    """Train `policy.model` and its masters in place on the client's own prompts for one round.

    Everything random follows from the run's seed, the client and the round; the optimiser starts afresh, so a client
    carries nothing from round to round but its compression residual.
    """
    train, tally = config.train, Tally()
    optimizer = torch.optim.AdamW(masters.parameters, lr=train.lr, weight_decay=train.weight_decay, fused=True)
    start = anchors(masters.parameters, masters.start, train.proximal)
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
                add_proximal(masters.parameters, start, train.proximal)
                if train.max_grad_norm > 0:
                    norm = torch.nn.utils.clip_grad_norm_(masters.parameters, train.max_grad_norm)
                    tally.add_metrics({"grad_norm": norm})
                optimizer.step()
                optimizer.zero_grad()
                masters.write_back()
                tally.add_metrics(metrics)
    policy.model.eval()
    return tally.report(client, round_number, stopwatch)


def minibatches(policy: Policy, rollouts: Rollouts, advantages_B: Tensor, config: Config) -> list[list[LossBatch]]:
    """Return what enters the model, one part an optimiser step."""
    parts = []
    for minibatch in cut(rollouts, advantages_B, config):
        batches = loss_batches(minibatch, config.train, share=policy.shares_prefixes)
        parts.append(with_references(policy, [batch.to(policy.device) for batch in batches], config))
    return parts


def cut(rollouts: Rollouts, advantages_B: Tensor, config: Config) -> list[Minibatch]:
    """Cut the rollouts between groups, one part an optimiser step; parts without any signal are left out.

    Groups that `rollout.informative_groups` asked for in vain keep their share of the loss: the others weigh what they
    would weigh among that many, as few of them are no more certain for being alone.
    """
    train, rollout = config.train, config.rollout
    found = len(advantages_B) // rollout.group_size
    planned = max(found, rollout.informative_groups or 0)
    per_part = -(-planned // train.minibatches)
    parts = []
    for start in range(0, found, per_part):
        groups, planned_here = min(per_part, found - start), min(per_part, planned - start)
        rows = torch.arange(groups * rollout.group_size, device=advantages_B.device) + start * rollout.group_size
        sequences = rollouts.rows(rows)
        weights_BT = token_weights(sequences.mask_BT, train.reduction, max_length=rollout.max_new_tokens)
        parts.append(Minibatch(sequences, advantages_B[rows], groups / planned_here * weights_BT))
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
