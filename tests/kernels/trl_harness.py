"""TRL's own GRPO loss on given logits, and ours on the same batch. Needs TRL.

B sequences   T completion tokens   V vocabulary
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from fgrpo_kernels import CISPO, SAPO, VESPO, GRPOLoss, Objective, PPOClip, grpo_loss, reference, token_weights
from fgrpo_kernels.objectives.base import Level, Tokens

B, T, V = 8, 6, 11
LOW, HIGH = 0.2, 0.28
MAX_LENGTH = 9  # the longest allowed completion; more than T
REDUCTION = {  # of each loss_type of TRL
    "grpo": "grpo",
    "bnpo": "bnpo",
    "dr_grpo": "dr_grpo",
    "dapo": "dapo",
    "luspo": "luspo",
    "cispo": "dapo",
    "sapo": "grpo",
    "vespo": "dapo",
}
LENGTHS = {  # tokens of each completion
    "full": [T] * B,
    "ragged": [6, 5, 4, 6, 3, 4, 5, 2],
    "holes": [6, 5, 6, 6, 4, 5, 6, 3],
    "empty-row": [6, 5, 4, 6, 3, 4, 5, 0],
    "nothing": [0] * B,
}
KLS = {  # TRL's options and ours
    "no-kl": ({"beta": 0.0}, {"beta": 0.0}),
    "k3": ({"beta": 0.04, "use_bias_correction_kl": False}, {"beta": 0.04, "kl": "k3"}),
    "k3_is": ({"beta": 0.04, "use_bias_correction_kl": True}, {"beta": 0.04, "kl": "k3_is"}),
}


@dataclass(frozen=True)
class Batch:
    """float64 tensors whose values are float32's, so that both precisions see the same numbers."""

    logits: Tensor  # [B, T, V]
    targets: Tensor  # [B, T]
    advantages: Tensor  # [B] or [B, T]
    completion_mask: Tensor  # [B, T] 0/1
    tool_mask: Tensor  # [B, T] 0/1: a 0 is a hole
    old_logp: Tensor | None  # [B, T]
    ref_logp: Tensor  # [B, T]
    sampling_logp: Tensor  # [B, T]

    @property
    def mask(self) -> Tensor:
        return self.completion_mask * self.tool_mask

    def logp_and_entropy(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = logits.log_softmax(-1)
        logp = log_probs.gather(-1, self.targets[..., None]).squeeze(-1)
        return logp, -(log_probs.exp() * log_probs).sum(-1)


@cache
def make_batch(pattern: str = "holes", *, old: bool = True, seed: int = 0) -> Batch:
    """Off-policy enough that at both levels and with both signs of the advantage a ratio lies under, in and over the
    clip; the last two rows are one of advantage 0 and the one that "empty-row" masks."""
    rng = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    completion_mask = (torch.arange(T) < torch.tensor(LENGTHS[pattern])[:, None]).long()
    tool_mask = torch.ones(B, T, dtype=torch.long)
    if pattern == "holes":
        tool_mask[[0, 1, 2, 5], [2, 0, 4, 3]] = 0
    batch = Batch(
        logits=randn(B, T, V).double(),
        targets=torch.randint(V, (B, T), generator=rng),
        advantages=torch.tensor([1.3, 0.5, 0.9, -0.7, -1.1, -1.6, 0.0, 0.6]).double(),
        completion_mask=completion_mask,
        tool_mask=tool_mask,
        old_logp=None,
        ref_logp=torch.empty(0),
        sampling_logp=torch.empty(0),
    )
    logp, _ = batch.logp_and_entropy(batch.logits)
    drift = torch.tensor([0.0, 0.6, -0.6, 0.0, 0.6, -0.6, 0.1, -0.1])[:, None]
    old_logp = (logp.float() + drift + 0.3 * randn(B, T)).double()
    sampling_logp = (old_logp.float() + 0.4 * randn(B, T)).double()
    ref_logp = (logp.float() + 0.3 * randn(B, T)).double()
    batch = replace(batch, old_logp=old_logp, ref_logp=ref_logp, sampling_logp=sampling_logp)
    if pattern != "nothing":
        _assert_every_regime(batch, logp)
    return batch if old else replace(batch, old_logp=None)


def _assert_every_regime(batch: Batch, logp: Tensor) -> None:
    log_ratio = (logp - batch.old_logp) * batch.mask
    mean = log_ratio.sum(1) / batch.mask.sum(1).clamp(min=1)
    signs = batch.advantages.sign()
    inside = batch.mask.bool()
    for level, ratios, sign in [
        ("token", log_ratio[inside].exp(), signs[:, None].expand(B, T)[inside]),
        ("sequence", mean.exp(), signs),
    ]:
        regimes = {(int(s), int(r > 1 + HIGH) - int(r < 1 - LOW)) for s, r in zip(sign, ratios, strict=True)}
        wanted = {(s, regime) for s in (-1, 1) for regime in (-1, 0, 1)}
        assert regimes >= wanted, f"{level} level: the batch lacks {wanted - regimes}"


class LossOnly(GRPOTrainer):
    """TRL's trainer with no more than `_compute_loss` reads: log-probabilities of given logits instead of a model."""

    def __init__(self, logp: Tensor, entropy: Tensor, num_processes: int = 1, accumulation: int = 1, **options: Any):
        args = GRPOConfig(
            output_dir="unused",
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_completion_length=MAX_LENGTH,
            gradient_accumulation_steps=accumulation,
            **options,
        )
        self.args = args
        self.logp, self.entropy = logp, entropy
        self.model = SimpleNamespace(training=True)
        self.accelerator = SimpleNamespace(
            num_processes=num_processes,
            sync_gradients=False,
            gather=lambda x: x,
            reduce=lambda x, reduction: x,
            pad_across_processes=lambda x, dim, pad_index: x,
        )
        self.current_gradient_accumulation_steps = accumulation
        self._metrics = {"train": defaultdict(list)}
        self.aux_loss_enabled = self.use_adaptive_entropy = False
        self.entropy_coef, self._entropy_bonus_enabled = args.entropy_coef, args.entropy_coef != 0
        self.epsilon_low = args.epsilon
        self.epsilon_high = args.epsilon if args.epsilon_high is None else args.epsilon_high
        for name in (
            "beta",
            "importance_sampling_level",
            "loss_type",
            "max_completion_length",
            "off_policy_mask_threshold",
            "top_entropy_quantile",
            "use_vllm",
            "vllm_importance_sampling_correction",
        ):
            setattr(self, name, getattr(args, name))

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        return self.logp, self.entropy, None


@dataclass(frozen=True)
class AtSequenceLevel:
    """TRL's `importance_sampling_level="sequence"` for VESPO, whose weight is a sequence's own already: every token's
    ratio is the mean one of its sequence, also to the KL term."""

    objective: Objective
    sequence_level = True

    def _tokens(self, tokens: Tokens) -> Tokens:
        return replace(tokens, old_logp_N=tokens.logp_N - tokens.log_ratio("sequence"))

    def log_ratio(self, tokens: Tokens) -> Tensor:
        return tokens.log_ratio("sequence")

    def loss(self, tokens: Tokens) -> Tensor:
        return self.objective.loss(self._tokens(tokens))

    def clipped(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return self.objective.clipped(self._tokens(tokens))


def objective_of(loss_type: str, level: Level = "token", delta: float | None = None) -> Objective:
    if loss_type == "vespo":
        return VESPO() if level == "token" else AtSequenceLevel(VESPO())
    own = {"cispo": CISPO(high=1 + HIGH, level=level), "sapo": SAPO(level=level)}.get(loss_type)
    return own or PPOClip(LOW, HIGH, delta=delta, level=level)


def weights_of(batch: Batch, loss_type: str, **normalisers: Any) -> Tensor:
    return token_weights(batch.mask, REDUCTION[loss_type], **{"max_length": MAX_LENGTH} | normalisers)


@dataclass(frozen=True)
class Result:
    loss: Tensor
    gradient: Tensor  # in the logits, [B, T, V]
    metrics: dict[str, Any]


def trl_result(
    batch: Batch,
    loss_type: str,
    *,
    dtype: torch.dtype = torch.float64,
    level: str = "token",
    importance_ratio: Tensor | None = None,
    with_sampling: bool = False,
    num_items: float | None = None,
    **options: Any,
) -> Result:
    """`GRPOTrainer._compute_loss`. `options` are those of `GRPOConfig` and `LossOnly`."""
    logits = batch.logits.to(dtype, copy=True).requires_grad_()
    options.setdefault("epsilon_high", 1 + HIGH if loss_type == "cispo" else HIGH)
    trainer = LossOnly(
        *batch.logp_and_entropy(logits),
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon=LOW,
        use_vllm=importance_ratio is not None,
        **options,
    )
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": batch.targets,
        "completion_mask": batch.completion_mask,
        "tool_mask": batch.tool_mask,
        "advantages": batch.advantages.to(dtype),
        "ref_per_token_logps": batch.ref_logp.to(dtype),
        "num_items_in_batch": torch.tensor(float(batch.mask.sum()) if num_items is None else num_items),
    }
    if batch.old_logp is not None:
        inputs["old_per_token_logps"] = batch.old_logp.to(dtype)
    if with_sampling:
        inputs["sampling_per_token_logps"] = batch.sampling_logp.to(dtype)
    if importance_ratio is not None:
        inputs["importance_sampling_ratio"] = importance_ratio
    loss = trainer._compute_loss(None, inputs)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return Result(loss.detach(), logits.grad, metrics)


def our_result(
    op: Callable[..., GRPOLoss], batch: Batch, weights: Tensor, *, dtype: torch.dtype = torch.float64, **options: Any
) -> Result:
    """`grpo_loss` or its specification on the batch's logits in `dtype`."""
    logits = batch.logits.to(dtype, copy=True).requires_grad_()
    loss, metrics = op(
        logits,
        batch.targets,
        batch.advantages,
        weights,
        **{"old_logp": batch.old_logp, "ref_logp": batch.ref_logp, "mask": batch.mask} | options,
    )
    loss.backward()
    return Result(loss.detach(), logits.grad, metrics)


def assert_same(ours: Result, trl: Result, name: str) -> None:
    """Equal to float32's rounding, which a float64 result has in its weights alone."""
    rtol, atol = (1e-6, 1e-7) if ours.gradient.dtype == torch.float64 else (1e-5, 1e-6)
    for what, x, expected, scale in [
        ("loss", ours.loss, trl.loss, 1.0),
        ("gradient", ours.gradient, trl.gradient, float(trl.gradient.abs().max())),
    ]:
        torch.testing.assert_close(
            x.double(), expected, rtol=rtol, atol=atol * scale, msg=lambda text, what=what: f"{name}, {what}: {text}"
        )


EXACT_RUNS = [("op, float64", grpo_loss, torch.float64), ("reference, float64", reference.grpo_loss, torch.float64)]
FLOAT32_RUN = ("op, float32", grpo_loss, torch.float32)
RUNS = [*EXACT_RUNS, FLOAT32_RUN]


def compare(
    batch: Batch,
    loss_type: str,
    trl_options: dict[str, Any] | None = None,
    *,
    level: Level = "token",
    objective: Objective | None = None,
    weights: Tensor | None = None,
    runs: list[tuple[str, Any, torch.dtype]] = RUNS,
    **options: Any,
) -> None:
    """TRL's result on the batch against each of ours."""
    expected = trl_result(batch, loss_type, level=level, **trl_options or {})
    weights = weights_of(batch, loss_type) if weights is None else weights
    objective = objective or objective_of(loss_type, level)
    for name, op, dtype in runs:
        assert_same(our_result(op, batch, weights, dtype=dtype, objective=objective, **options), expected, name)
