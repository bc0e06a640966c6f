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
    """Model inputs, and the terms of the loss for each of the N tokens that they predict.

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

    def with_reference(self, ref_logp_N: Tensor) -> LossBatch:
        return replace(self, ref_logp_N=ref_logp_N)


def loss_batches(
    rollouts: Rollouts, advantages_B: Tensor, weights_BT: Tensor, config: TrainConfig, *, share: bool
) -> list[LossBatch]:
    """Return the batches whose losses add up to the loss of these sequences.

    Sequences without signal (advantage 0, and neither a KL nor an entropy term) do not enter: they count in the
    reduction, which is in the weights, and give no gradient.

    Args:
        weights_BT: float32, see `fgrpo_kernels.token_weights`.
        share: equal prefixes may share a row (see `fgrpo_kernels.shared_prompts`).
    """
    has_signal_B = advantages_B != 0 if config.beta == config.entropy_coef == 0 else torch.ones_like(advantages_B)
    prompt_length = rollouts.prompt_length
    completion_BT = rollouts.tokens_BL[:, prompt_length:]
    batches = share_padded_prompts(
        rollouts.tokens_BL[:, :prompt_length],
        rollouts.attention_BL[:, :prompt_length],
        completion_BT,
        rollouts.mask_BT,
        which=has_signal_B.nonzero().flatten().tolist(),
        max_tokens=config.max_tokens,
        share=share,
    )
    return [
        LossBatch(
            inputs=batch,
            targets_N=completion_BT[batch.sequences, batch.tokens],
            sequence_ids_N=batch.sequences.unique_consecutive(return_inverse=True)[1],
            advantages_N=advantages_B[batch.sequences],
            weights_N=weights_BT[batch.sequences, batch.tokens],
            old_logp_N=rollouts.old_logp_BT[batch.sequences, batch.tokens],
        )
        for batch in batches
    ]
