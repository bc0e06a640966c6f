"""A client's rollout batches: prompts drawn, answered, scored, and compared within their groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fgrpo.client.owner import Client
from fgrpo.client.policy import Policy
from fgrpo.client.rollouts import join
from fgrpo.client.tally import Tally
from fgrpo.config import Config
from fgrpo.records import Rollouts
from fgrpo.seeds import derive_seed
from fgrpo.stopwatch import Stopwatch
from fgrpo_kernels import GroupAdvantages, group_advantages

_BUDGET = 4  # groups drawn at most for each one that is wanted, where `rollout.max_groups` does not say


@dataclass(frozen=True)
class _Player:
    """A client at its rollouts."""

    policy: Policy
    client: Client
    config: Config
    stopwatch: Stopwatch
    tally: Tally

    def play(self, start: int, number: int, seed: int) -> tuple[Rollouts, Tensor, GroupAdvantages]:
        """Sample and reward questions `start` to `start + number` of the client's stream.

        Returns:
            The rollouts, without the tokens of completions that have no reward; the rewards, float32 [B]; and what the
            groups make of them.
        """
        rollout = self.config.rollout
        with self.stopwatch("rollout"):
            questions = self.client.draw(start, number)
            rollouts = self.policy.sample([question.example.prompt for question in questions], rollout, seed)
        with self.stopwatch("reward"):
            answered = [question for question in questions for _ in range(rollout.group_size)]
            scores = self.client.scores(answered, rollouts.answers())
            rewards_B = self.client.reward_scale * torch.tensor(scores.values, dtype=torch.float32)
            rollouts = rollouts.without(rewards_B.isnan())
            advantages = self.advantages(rewards_B)
        self.tally.add_rollouts(rollouts, rewards_B, advantages, scores)
        return rollouts, rewards_B, advantages

    def advantages(self, rewards_B: Tensor) -> GroupAdvantages:
        train = self.config.train
        return group_advantages(
            rewards_B, self.config.rollout.group_size, scale=train.advantage_scale, baseline=train.baseline
        )


def roll_out(
    policy: Policy, client: Client, config: Config, batch: int, stopwatch: Stopwatch, tally: Tally
) -> tuple[Rollouts, Tensor]:
    """Return a client's rollout batch of this number with its advantages, float32 [B].

    A completion without a reward is no part of the batch: neither of its group nor of any token's weight. With
    `rollout.informative_groups` neither is a group without signal, and the batch may be empty.
    """
    player = _Player(policy, client, config, stopwatch, tally)
    if config.rollout.informative_groups is not None:
        rollouts, advantages = _informative(player, batch, config.rollout.informative_groups)
    else:
        number = config.rollout.prompts_per_step
        rollouts, _, advantages = player.play(
            batch * number, number, derive_seed(config.seed, client.name, "rollout", batch)
        )
    return rollouts, advantages.advantages


def _informative(player: _Player, batch: int, wanted: int) -> tuple[Rollouts, GroupAdvantages]:
    """Draw until `wanted` groups carry signal, or the budget is spent; return those that do.

    Every draw asks for as many as the share that carried signal so far suggests. How many prompts a batch takes depends
    on the model, so it cannot begin where the one before ended without a place being kept from round to round: it
    begins anywhere, as its seed says. Windows at regular distances could miss rows of a small dataset for ever.
    """
    config, rollout = player.config, player.config.rollout
    budget = _BUDGET * wanted if rollout.max_groups is None else rollout.max_groups
    start = derive_seed(config.seed, player.client.name, "prompts", batch)
    kept, kept_rewards = [], []
    drawn = found = 0
    while found < wanted and drawn < budget:
        likely = -(-(wanted - found) * (drawn + 1) // (found + 1))
        number = min(likely, rollout.prompts_per_step, budget - drawn)
        seed = derive_seed(config.seed, player.client.name, "rollout", batch, drawn)
        rollouts, rewards_B, advantages = player.play(start + drawn, number, seed)
        with_signal_B = ~advantages.degenerate.repeat_interleave(rollout.group_size)
        kept.append(rollouts.rows(with_signal_B.nonzero().flatten()))
        kept_rewards.append(rewards_B[with_signal_B])
        drawn += number
        found += int(with_signal_B.sum()) // rollout.group_size
    return join(kept), player.advantages(torch.cat(kept_rewards))
