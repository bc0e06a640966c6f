"""One micro-batch of TRL's GRPO by `linear_grpo_loss`: loss and gradient from one pass through the LM head.

B sequences   T completion tokens   L tokens of prompt and completion
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import nanmax, nanmin

from fgrpo_kernels import CISPO, SAPO, Objective, PPOClip, token_weights
from fgrpo_kernels.kl import KL
from fgrpo_kernels.models.causal_lm_head import CausalLMHead
from fgrpo_kernels.token_weights import Reduction

# Of TRL's loss types, by how they reduce. VESPO is not here: its weight needs a whole sequence's log-probabilities.
_REDUCTIONS: dict[str, Reduction] = {
    "grpo": "grpo",
    "sapo": "grpo",
    "bnpo": "bnpo",
    "dr_grpo": "dr_grpo",
    "dapo": "dapo",
    "cispo": "dapo",
    "luspo": "luspo",
}
_OF_MODEL = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


def plan_step(trainer: Any, inputs: dict[str, Any], *, informative_only: bool) -> FusedStep | None:
    """A GRPOTrainer's micro-batch as a `FusedStep`; None where TRL's own loss on fused log-probabilities has to do it.

    That is: where the loss needs more than each token's own log-probability, and where TRL's metrics do.
    """
    args, loss_type = trainer.args, trainer.loss_type
    on_policy = "old_per_token_logps" not in inputs
    reduction = _REDUCTIONS.get(loss_type)
    needs_more = (
        not trainer.model.training
        or reduction is None
        or trainer.importance_sampling_level != "token"
        or trainer.top_entropy_quantile < 1.0
        or trainer.off_policy_mask_threshold is not None
        or trainer._entropy_bonus_enabled
        or trainer.aux_loss_enabled
        or inputs["completion_mask"].shape[1] == 1  # TRL's metrics take [B, 1] for one value a sequence
        or (args.delta is not None and args.delta < 1.0)
        # The KL term has the loss's weights, its metric is a mean over tokens: one pass gives both if they agree.
        or (trainer.beta != 0.0 and reduction == "grpo")
    )
    # Away from a ratio of 1, TRL's clip ratios are also by sequence, and its KL is weighted by the ratio.
    metrics_need_more = not on_policy and (
        not informative_only or (trainer.beta != 0.0 and args.use_bias_correction_kl)
    )
    if needs_more or metrics_need_more:
        return None
    assert reduction is not None
    mask = inputs["completion_mask"]
    mask = (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).float()
    objective: Objective
    if loss_type == "cispo":
        objective = CISPO(high=trainer.epsilon_high)
    elif loss_type == "sapo":
        objective = SAPO(args.sapo_temperature_pos, args.sapo_temperature_neg)
    else:
        objective = PPOClip(trainer.epsilon_low, trainer.epsilon_high, args.delta)
    return FusedStep(
        trainer=trainer,
        inputs=inputs,
        mask=mask,
        weights=_weights(trainer, mask, reduction, inputs["num_items_in_batch"]),
        policy_factor=inputs.get("importance_sampling_ratio") if _corrects_sampling(trainer) else None,
        objective=objective,
        kl="k3_is" if args.use_bias_correction_kl else "k3",
        informative_only=informative_only,
    )


def _corrects_sampling(trainer: Any) -> bool:
    return trainer.use_vllm and trainer.vllm_importance_sampling_correction


def _weights(trainer: Any, mask: Tensor, reduction: Reduction, num_items: Tensor) -> Tensor:
    """`[B, T]`: TRL's reduction of this micro-batch, with its share of the optimiser step."""
    accumulation = trainer.current_gradient_accumulation_steps
    num_tokens = num_items.clamp(min=1.0) / trainer.accelerator.num_processes
    return token_weights(
        mask,
        reduction,
        num_tokens=num_tokens * accumulation / trainer.args.steps_per_generation,
        num_sequences=len(mask) * accumulation,
        max_length=trainer.max_completion_length,
        divisor=accumulation if reduction == "bnpo" else 1,  # the others have it in their normalisers
    )


@dataclass
class FusedStep:
    """A micro-batch on its way through the model.

    `loss` asks TRL to call the model as it always does; the model's fused forward, inside DDP's and FSDP's wrappers,
    calls `run`, whose loss comes back as the model's output.
    """

    trainer: Any
    inputs: dict[str, Any]
    mask: Tensor  # [B, T] float, the completions' own tokens
    weights: Tensor  # [B, T]
    policy_factor: Tensor | None  # [B, T] or [B, 1]
    objective: Objective
    kl: KL
    informative_only: bool
    metrics: dict[str, Tensor] | None = None
    entropy_sum: Tensor | None = None
    entropy_count: Tensor | None = None

    def loss(self, model: nn.Module) -> Tensor:
        """The loss of the micro-batch, 0-d; TRL's metrics are logged on the way."""
        inputs = self.inputs
        logp, _, _ = self.trainer._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            self.mask.shape[1],
            **{name: inputs.get(name) for name in _OF_MODEL},
        )
        if self.metrics is None:
            raise RuntimeError(
                "FusedGRPOTrainer: the model's forward is no longer this trainer's fused one. Was another trainer made "
                "from the same model since? Give each its own copy"
            )
        self._log()
        return logp[0, 0]

    def run(self, head: CausalLMHead, model: Any, hidden_BLH: Tensor, targets_BL: Tensor) -> Tensor:
        """Loss of the completions, expanded to the `[B, L - 1]` that a model's log-probabilities would have."""
        length = self.mask.shape[1]
        hidden_BTH, targets_BT = hidden_BLH[:, -length:], targets_BL[:, -length:]
        advantages, beta = self.inputs["advantages"], self.trainer.beta
        count = self.mask.sum()
        weights, factor = self.weights, self.policy_factor
        if beta == 0.0:
            # With the reduction in the factor, the metrics are what TRL's are: means over tokens.
            weights = self.mask / count.clamp(min=1.0)
            share = self.weights * count
            factor = share if factor is None else share * factor
        loss, metrics = head.grpo_loss(
            model,
            hidden_BTH,
            targets_BT,
            advantages=advantages,
            weights=weights,
            old_logp=self.inputs.get("old_per_token_logps"),
            ref_logp=self.inputs.get("ref_per_token_logps") if beta != 0.0 else None,
            policy_factor=factor,
            mask=self.mask,
            objective=self.objective,
            beta=beta,
            kl=self.kl,
        )
        self.metrics = metrics
        self.entropy_count = metrics["informative"] * count
        self.entropy_sum = metrics["entropy"] * self.entropy_count
        if not self.informative_only and beta == 0.0:
            silent = (self.mask != 0) & (advantages.view(len(self.mask), -1) == 0)
            with torch.no_grad():
                entropy = head.token_logprobs(model, hidden_BTH.detach(), targets_BT, silent).entropy
            self.entropy_sum, self.entropy_count = self.entropy_sum + entropy.sum(), count
        return loss.expand(targets_BL.shape)

    def _log(self) -> None:
        """What `GRPOTrainer._compute_loss` logs, under its names."""
        assert self.metrics is not None
        trainer, metrics = self.trainer, self.metrics
        log = trainer._metrics["train"]
        reduce, gather = trainer.accelerator.reduce, trainer.accelerator.gather

        def log_mean(name: str, total: Tensor | None, count: Tensor | None) -> None:
            assert total is not None
            assert count is not None
            totals = reduce(torch.stack([total, count.to(total.dtype)]), reduction="sum")
            log[name].append((totals[0] / totals[1].clamp(min=1.0)).item())

        count = self.mask.sum()
        informative = metrics["informative"] * count
        if trainer.beta != 0.0:
            log_mean("kl", metrics["kl"] * count, count)
        log_mean("entropy", self.entropy_sum, self.entropy_count)
        low, high = (metrics[f"clip_ratio/{side}"] * informative for side in ("low", "high"))
        if trainer.loss_type == "cispo":
            log_mean("cispo_clip_ratio", high, count)
        elif trainer.loss_type != "sapo":
            log_mean("clip_ratio/low_mean", low, count)
            log_mean("clip_ratio/high_mean", high, count)
            log_mean("clip_ratio/region_mean", low + high, count)
            if "old_per_token_logps" not in self.inputs:  # the ratio is 1, and nothing is clipped in any sequence
                none = (0.0 * self.mask).sum(-1) / self.mask.sum(-1)
                log["clip_ratio/low_min"].append(nanmin(gather(none)).item())
                log["clip_ratio/high_max"].append(nanmax(gather(none)).item())
        if self.informative_only:
            log_mean("informative", informative, count)
