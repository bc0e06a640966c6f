"""From rollouts and advantages to what enters the model: every prompt once a group, and nothing without signal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fgrpo.config import TrainConfig
from fgrpo.records import Rollouts
from fgrpo_kernels.shared_prompts import PrefixBatch, share_padded_prompts


@dataclass(frozen=True)
class LossBatch:
    """Model inputs, and the terms of the loss for each of the N tokens that they predict, all of which carry signal.

    Attributes:
        inputs: which hidden states there are, and which of them predict the tokens.
        targets_N: int64, the tokens.
        sequence_ids_N: int64, the sequence of each, numbered from 0 within the batch.
        advantages_N, weights_N: float32; the weights hold the reduction.
        old_logp_N: float32, log-probabilities (nats) under the policy that sampled the tokens.
        ref_logp_N: those under the starting model; None without a KL term.
    """

    inputs: PrefixBatch
    targets_N: Tensor
    sequence_ids_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    old_logp_N: Tensor
    ref_logp_N: Tensor | None = None

    def only(self, index: Tensor) -> LossBatch:
        """Return the same model inputs with the terms of some of the tokens, by an ascending int64 index."""
        return LossBatch(
            inputs=self.inputs.only(index),
            targets_N=self.targets_N[index],
            sequence_ids_N=self.sequence_ids_N[index].unique_consecutive(return_inverse=True)[1],
            advantages_N=self.advantages_N[index],
            weights_N=self.weights_N[index],
            old_logp_N=self.old_logp_N[index],
            ref_logp_N=None if self.ref_logp_N is None else self.ref_logp_N[index],
        )

    def to(self, device: torch.device) -> LossBatch:
        """Return the batch on a device, without waiting for it."""
        if self.targets_N.device == device:
            return self
        tensors = {name: x.to(device, non_blocking=True) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, inputs=self.inputs.to(device), **tensors)

    def with_reference(self, ref_logp_N: Tensor) -> LossBatch:
        return replace(self, ref_logp_N=ref_logp_N)


@dataclass(frozen=True)
class Minibatch:
    """The sequences of one optimiser step, in CPU memory, where they are arranged into batches.

    Attributes:
        advantages_B, weights_BT: float32; the weights hold the reduction (see `fgrpo_kernels.token_weights`).
    """

    rollouts: Rollouts
    advantages_B: Tensor
    weights_BT: Tensor

    def has_signal(self, config: TrainConfig) -> Tensor:
        """Return bool [B]: a sequence without tokens has none, nor has advantage 0 without a KL or an entropy term."""
        has_tokens_B = self.rollouts.mask_BT.any(dim=1)
        return has_tokens_B & (self.advantages_B != 0) if config.beta == config.entropy_coef == 0 else has_tokens_B


def loss_batches(
    minibatch: Minibatch, config: TrainConfig, *, share: bool, owner_B: Tensor | None = None
) -> list[LossBatch]:
    """Return the batches whose losses add up to the loss of these sequences, in CPU memory.

    Sequences without signal do not enter: they count in the reduction, which is in the weights, and give no gradient.

    Args:
        share: equal prefixes may share a row (see `fgrpo_kernels.shared_prompts`).
        owner_B: whose each sequence is, int64; a row is all one owner's.
    """
    rollouts = minibatch.rollouts
    prompt_length = rollouts.prompt_length
    completion_BT = rollouts.tokens_BL[:, prompt_length:]
    batches = share_padded_prompts(
        rollouts.tokens_BL[:, :prompt_length],
        rollouts.attention_BL[:, :prompt_length],
        completion_BT,
        rollouts.mask_BT,
        which=minibatch.has_signal(config).nonzero().flatten().tolist(),
        max_tokens=config.max_tokens,
        share=share,
        owners=None if owner_B is None else owner_B.tolist(),
    )
    return [
        LossBatch(
            inputs=batch,
            targets_N=completion_BT[batch.sequences, batch.tokens],
            sequence_ids_N=batch.sequences.unique_consecutive(return_inverse=True)[1],
            advantages_N=minibatch.advantages_B[batch.sequences],
            weights_N=minibatch.weights_BT[batch.sequences, batch.tokens],
            old_logp_N=rollouts.old_logp_BT[batch.sequences, batch.tokens],
        )
        for batch in batches
    ]
