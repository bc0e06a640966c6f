"""GRPO on several clients at once between two rounds: their own rollouts, one pass through the model for all.

Each client has the losses, the gradients, the clipping and the optimiser state that `train_locally` would give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from fgrpo.client.guard import guarded
from fgrpo.client.local_training import cut, loss_options, step_metrics, with_references
from fgrpo.client.loss_batches import LossBatch, Minibatch, loss_batches
from fgrpo.client.owner import Client
from fgrpo.client.policy import Policy
from fgrpo.client.proximal import add_proximal
from fgrpo.client.rollout_batches import roll_out
from fgrpo.client.rollouts import join
from fgrpo.client.stacked_lora import Stack, stacked
from fgrpo.client.tally import Tally
from fgrpo.config import Config
from fgrpo.records import Failure, Report
from fgrpo.seeds import derive_seed, seeded
from fgrpo.stopwatch import Stopwatch, together
from fgrpo_kernels import GRPOLoss
from fgrpo_kernels.shared_prompts import share_prompts


@dataclass
class _Member:
    """A client with its place in the stack, and what it has come to so far."""

    place: int
    client: Client
    stopwatch: Stopwatch
    tally: Tally = field(default_factory=Tally)
    failure: Failure | None = None

    def report(self, round_number: int) -> Report | Failure:
        if self.failure is not None:
            return self.failure
        return guarded(self.client.name, partial(self.tally.report, self.client, round_number, self.stopwatch))


@dataclass(frozen=True)
class _StackedBatch:
    """A batch with rows of several clients: all tokens as one loss, which shares the model inputs with each client's.

    Attributes:
        client_R: int64, the place in the stack of each row's client.
        own: each client's part of the loss, by place.
    """

    whole: LossBatch
    client_R: Tensor
    own: dict[int, LossBatch]


def train_together(
    policy: Policy,
    stack: Stack,
    clients: Sequence[Client],
    config: Config,
    round_number: int,
    stopwatches: Sequence[Stopwatch],
) -> list[Report | Failure]:
    """Train every client's adapter in the stack on its own prompts for one round.

    A client that fails leaves; the others do not notice, but for dropout, which is drawn for all rows of a batch.
    """
    train = config.train
    members = [_Member(k, client, watch) for k, (client, watch) in enumerate(zip(clients, stopwatches, strict=True))]
    parameters = [p for own in stack.parameters for p in own]
    optimizer = torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay, fused=True)
    for step in range(train.local_steps):
        batch = (round_number - 1) * train.local_steps + step
        parts = _collect(policy, stack, members, config, batch)
        present = [member for member in members if member.failure is None]
        if not present:
            break
        seed = derive_seed(config.seed, "stacked", "train", batch)
        with together([member.stopwatch for member in present], "train"), seeded(policy.device, seed):
            steps = [
                _stacked_batches(policy, {k: own[i] for k, own in parts.items() if i < len(own)}, config)
                for i in range(max(map(len, parts.values())))
            ]
            policy.model.train()
            for batches in steps * train.updates_per_rollout:
                for place, metrics in _update(policy, stack, batches, optimizer, config).items():
                    members[place].tally.add_metrics(metrics)
    policy.model.eval()
    return [member.report(round_number) for member in members]


@torch.no_grad()
def check_can_stack(policy: Policy) -> None:
    """Raise ConfigError if the model's adapters cannot be stacked; it is tried on two rows."""
    (probe,) = share_prompts([[0], [1]], [[0, 0], [0, 0]])
    with stacked(policy.model, 2) as stack, stack.rows(torch.arange(2, device=policy.device)):
        policy.states(probe.to(policy.device))


def _collect(
    policy: Policy, stack: Stack, members: Sequence[_Member], config: Config, batch: int
) -> dict[int, list[Minibatch]]:
    """Return the minibatches of each client's rollout batch, by place.

    Rollouts are drawn one client after another: rows may leave the batch while it is sampled, and a sampler does not
    tell which.
    """
    parts = {}
    for member in members:
        if member.failure is not None:
            continue
        with stack.rows(member.place):
            play = partial(roll_out, policy, member.client, config, batch, member.stopwatch, member.tally)
            done = guarded(member.client.name, play)
        if isinstance(done, Failure):
            member.failure = done
        else:
            parts[member.place] = cut(*done, config)
    return parts


def _stacked_batches(policy: Policy, minibatches: dict[int, Minibatch], config: Config) -> list[_StackedBatch]:
    """Return the batches of one optimiser step of all clients that have a minibatch for it."""
    lengths = [len(part.advantages_B) for part in minibatches.values()]
    client_B = torch.tensor(list(minibatches)).repeat_interleave(torch.tensor(lengths))
    joined = _joined(list(minibatches.values()))
    batches = loss_batches(joined, config.train, share=policy.shares_prefixes, owner_B=client_B)
    found, device = [], policy.device
    for batch in batches:
        client_N = client_B[batch.inputs.sequences]
        index = {k: (client_N == k).nonzero().flatten() for k in client_N.unique().tolist()}
        own = {k: batch.only(of_client).to(device) for k, of_client in index.items()}
        (whole,) = with_references(policy, [batch.to(device)], config)
        if whole.ref_logp_N is not None:
            there = {k: of_client.to(device, non_blocking=True) for k, of_client in index.items()}
            own = {k: part.with_reference(whole.ref_logp_N[there[k]]) for k, part in own.items()}
        client_R = batch.inputs.owners(client_B).to(device, non_blocking=True)
        found.append(_StackedBatch(whole, client_R, own))
    return found


def _joined(parts: Sequence[Minibatch]) -> Minibatch:
    """Return the sequences of all parts, padded to the same lengths."""
    rollouts = join([part.rollouts for part in parts])
    tokens = rollouts.mask_BT.shape[1]
    weights_BT = torch.cat([pad(part.weights_BT, (0, tokens - part.weights_BT.shape[1])) for part in parts])
    return Minibatch(rollouts, torch.cat([part.advantages_B for part in parts]), weights_BT)


def _update(
    policy: Policy, stack: Stack, batches: list[_StackedBatch], optimizer: torch.optim.Optimizer, config: Config
) -> dict[int, dict[str, Tensor]]:
    """Make one optimiser step of all clients that have a part in it; return their metrics, by place."""
    losses: dict[int, list[GRPOLoss]] = {}
    for batch in batches:
        with stack.rows(batch.client_R):
            states = policy.states(batch.whole.inputs)
            now = {k: policy.loss(own, states=states, **loss_options(config)) for k, own in batch.own.items()}
            torch.stack([loss.loss for loss in now.values()]).sum().backward()
        for place, loss in now.items():
            losses.setdefault(place, []).append(GRPOLoss(loss.loss.detach(), loss.metrics))
    stack.take_gradients(list(losses))
    metrics = {}
    for place, own in losses.items():
        metrics[place] = step_metrics(own, [batch.own[place] for batch in batches if place in batch.own])
        add_proximal(stack.parameters[place], stack.start, config.train.proximal)
        if config.train.max_grad_norm > 0:
            norm = torch.nn.utils.clip_grad_norm_(stack.parameters[place], config.train.max_grad_norm)
            metrics[place]["grad_norm"] = norm
    optimizer.step()
    return metrics
