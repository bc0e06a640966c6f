"""What a client does between two rounds: rollouts, and GRPO on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of all parameters.

    Args:
        rank: rank of the adapters.
        alpha: scale of the adapters; the update is multiplied by alpha / rank.
        dropout: dropout on the adapters' input.
        target_modules: module names to adapt, or `all-linear`.
        train: `both` matrices, or only `b` (FFA-LoRA): the mean of clients' updates is then exact, and half as much is
            sent. See `docs/client.md`.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    train: Literal["both", "b"] = "both"


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are sampled.

    Args:
        prompts_per_step: different prompts in a rollout batch; with `informative_groups`, at most in one draw.
        group_size: completions per prompt; advantages are relative within this group.
        max_new_tokens: length limit of a completion, in tokens.
        temperature: sampling temperature; the loss uses the same.
        system_prompt: put before every prompt, where the chat template has a place for it; a chat that brings a
            system message of its own keeps that one.
        sampler: what draws completions: `transformers` is a decoding loop over the model itself, on any device; `vllm`
            an engine of its own beside it, on the same GPU.
        informative_groups: draw prompts for a rollout batch until this many groups carry signal, that is unequal
            rewards, and train on these alone (DAPO's dynamic sampling). See `docs/client.md`.
        max_groups: groups drawn for a rollout batch at most; null is four times `informative_groups`.
    """

    prompts_per_step: int = 16
    group_size: int = 8
    max_new_tokens: int = 64
    temperature: float = 1.0
    system_prompt: str | None = None
    sampler: Literal["transformers", "vllm"] = "transformers"
    informative_groups: int | None = None
    max_groups: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """GRPO on one client between two rounds.

    Args:
        local_steps: rollout batches per round.
        updates_per_rollout: optimisation passes over each rollout batch; from the second on, the clipped ratio works.
        minibatches: optimiser steps per pass; at most this many parts, cut between groups.
        max_tokens: tokens that enter the model at once in training, padding included; more are split into parts whose
            gradients add up. The dial for memory.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        max_grad_norm: gradients are clipped to this norm; 0 turns clipping off.
        clip_low: the ratio's lower clip range.
        clip_high: the ratio's upper clip range.
        level: importance ratio per token (GRPO) or per sequence (GSPO).
        reduction: how token losses are weighted; see `fgrpo_kernels.token_weights`.
        advantage_scale: divide advantages by the group's standard deviation, the batch's, or nothing (Dr. GRPO).
        baseline: subtract the group's mean, or the mean of the other completions (RLOO).
        beta: weight of the KL penalty towards the starting model.
        entropy_coef: weight of the entropy bonus.
        proximal: FedProx: adds `proximal / 2 * |w - w_global|^2` to a client's loss. See `docs/client.md`.
        model_dropout: train with the dropout that the model's own configuration asks for, which rollouts do without, so
            that ratios move off 1 before the policy does; dropout of the adapters is `lora.dropout`.
    """

    local_steps: int = 4
    updates_per_rollout: int = 1
    minibatches: int = 1
    max_tokens: int = 8192
    lr: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    level: Literal["token", "sequence"] = "token"
    reduction: Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo"] = "dapo"
    advantage_scale: Literal["group", "batch", "none"] = "group"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    beta: float = 0.0
    entropy_coef: float = 0.0
    proximal: float = 0.0
    model_dropout: bool = False
