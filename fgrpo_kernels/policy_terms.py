"""The loss of N token rows as a function of their log-probabilities and entropies; all else is constant.

    loss = sum_t weights_t * (policy_factor_t * l_t + beta * KL_t - entropy_coef * H_t)

These are vectors of N numbers: next to a row of logits they cost nothing, so plain autograd differentiates them,
and every path (reference, chunked) shares this file.

    N token rows
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fgrpo_kernels.checks import can_look_at
from fgrpo_kernels.kl import ESTIMATORS, KL, k3
from fgrpo_kernels.objectives.base import MAX_LOG_RATIO, Objective, Tokens, bounded_exp


@dataclass(frozen=True)
class PolicyTerms:
    """N token rows with everything the loss needs but their logits.

    Vectors are `[N]`, of the accumulation dtype (float32, or float64 for float64 logits), without gradient.

    Attributes:
        mask_N, sequence_ids_N: bool and int64 `[N]` for a sequence-level objective, otherwise None.
        num_sequences: ids are below it; with ids that cannot be looked at, N.
        sequence_length: T in the padded layout, whose sequences are T consecutive rows each; otherwise None.
        total_weight: sum of the weights before rows were left out; None as long as all are there.
    """

    advantages_N: Tensor
    weights_N: Tensor
    policy_factor_N: Tensor | None
    old_logp_N: Tensor | None
    ref_logp_N: Tensor | None
    mask_N: Tensor | None
    sequence_ids_N: Tensor | None
    num_sequences: int
    sequence_length: int | None
    objective: Objective
    beta: float
    kl: KL
    entropy_coef: float
    total_weight: Tensor | None = None

    def select(self, rows: Tensor | slice) -> PolicyTerms:
        """The terms of some rows, by index or slice."""

        def pick(x_N: Tensor | None) -> Tensor | None:
            return None if x_N is None else x_N[rows]

        return replace(
            self,
            advantages_N=self.advantages_N[rows],
            weights_N=self.weights_N[rows],
            policy_factor_N=pick(self.policy_factor_N),
            old_logp_N=pick(self.old_logp_N),
            ref_logp_N=pick(self.ref_logp_N),
            mask_N=pick(self.mask_N),
            sequence_ids_N=pick(self.sequence_ids_N),
            sequence_length=None,
        )

    def informative_rows(self) -> tuple[Tensor, PolicyTerms]:
        """Indices `[n]` of the rows that can change the loss or its gradient, in order, and their terms."""
        rows = self.informative_mask().nonzero().squeeze(1)
        return rows, replace(self.select(rows), total_weight=self.weights_N.sum())._without_weightless_values()

    def every_row(self, op: str) -> PolicyTerms:
        """The terms of all rows, as a caller says that each of them is informative; where that is free, it is checked.

        Raises:
            ValueError: one is not.
        """
        if can_look_at(self.weights_N) and not bool((informative_N := self.informative_mask()).all()):
            raise ValueError(
                f"{op}: all_informative, but {int((~informative_N).sum())} of {len(informative_N)} rows have no signal "
                "(weight 0, or no term of the loss other than 0); leave those rows out, or all_informative"
            )
        return replace(self, total_weight=self.weights_N.sum())._without_weightless_values()

    def informative_mask(self) -> Tensor:
        """bool `[N]`: the rows that can change the loss or its gradient.

        A row is left out if its weight is 0, or if its policy term is 0 (advantage or factor 0) and there is no
        other term. For a sequence-level objective, all masked rows of a sequence stay if one of its rows does: the
        sequence's ratio depends on them.
        """
        weighted_N = self.weights_N != 0
        policy_N = weighted_N & (self.advantages_N != 0)
        if self.policy_factor_N is not None:
            policy_N &= self.policy_factor_N != 0
        informative_N = policy_N if self.beta == 0 and self.entropy_coef == 0 else weighted_N
        if self.sequence_ids_N is not None:
            live_S = torch.zeros(self.num_sequences, dtype=torch.int32, device=policy_N.device)
            live_S = live_S.index_add(0, self.sequence_ids_N, informative_N.to(torch.int32))
            assert self.mask_N is not None, "set together with the ids"
            informative_N = informative_N | (self.mask_N & (live_S[self.sequence_ids_N] > 0))
        return informative_N

    def blanked(self, kept_N: Tensor) -> PolicyTerms:
        """All N rows, those that are not kept made neutral: their logp and entropy must be 0, and they add 0.

        What `select` does for a device where a shape that depends on data would cost a synchronisation.
        """

        def blank(x_N: Tensor | None) -> Tensor | None:
            return None if x_N is None else torch.where(kept_N, x_N, 0.0)

        return replace(
            self,
            advantages_N=torch.where(kept_N, self.advantages_N, 0.0),
            weights_N=torch.where(kept_N, self.weights_N, 0.0),
            policy_factor_N=blank(self.policy_factor_N),
            old_logp_N=blank(self.old_logp_N),
            ref_logp_N=blank(self.ref_logp_N),
            mask_N=None if self.mask_N is None else self.mask_N & kept_N,
            total_weight=self.weights_N.sum(),
        )._without_weightless_values()

    def _without_weightless_values(self) -> PolicyTerms:
        # Rows of weight 0 that stay (for their sequence's ratio) may carry NaN in what only their own term would
        # read: blank it before any arithmetic, because 0 * NaN is NaN.
        weightless_N = self.weights_N == 0

        def blank(x_N: Tensor | None) -> Tensor | None:
            return None if x_N is None else x_N.masked_fill(weightless_N, 0.0)

        return replace(
            self,
            advantages_N=self.advantages_N.masked_fill(weightless_N, 0.0),
            policy_factor_N=blank(self.policy_factor_N),
            ref_logp_N=blank(self.ref_logp_N),
        )

    def loss(self, logp_N: Tensor, entropy_N: Tensor) -> Tensor:
        """The scalar loss, differentiable in both arguments."""
        tokens = self._tokens(logp_N)
        terms_N = self.objective.loss(tokens)
        if self.policy_factor_N is not None:
            terms_N = self.policy_factor_N * terms_N
        if self.beta != 0:
            terms_N = terms_N + self.beta * self._kl(tokens)
        if self.entropy_coef != 0:
            terms_N = terms_N - self.entropy_coef * entropy_N
        return (self.weights_N * terms_N).sum()

    def gradients(self, logp_N: Tensor, entropy_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """d loss / d logp `[N]` and d loss / d entropy `[N]` (None when entropy is no term of the loss)."""
        with torch.enable_grad():
            leaf_N = logp_N.detach().requires_grad_()
            (grad_logp_N,) = torch.autograd.grad(self.loss(leaf_N, entropy_N.detach()), leaf_N)
        return grad_logp_N, None if self.entropy_coef == 0 else -self.entropy_coef * self.weights_N

    def metrics(self, logp_N: Tensor, entropy_N: Tensor) -> dict[str, Tensor]:
        """Detached 0-d metrics; `grpo_loss` documents them."""
        logp_N, entropy_N = logp_N.detach(), entropy_N.detach()
        counted_N = self.weights_N != 0
        tokens = self._tokens(logp_N)
        total = self.weights_N.sum()
        whole = total if self.total_weight is None else self.total_weight

        def weighted_mean(x_N: Tensor) -> Tensor:
            return torch.where(total == 0, 0.0, torch.where(counted_N, self.weights_N * x_N, 0.0).sum() / total)

        def share(low_or_high_N: Tensor) -> Tensor:
            return weighted_mean(low_or_high_N.to(logp_N.dtype))

        def counted_log_ratios(neutral: float) -> Tensor:
            # With one more entry, which stands for a ratio of 1 if no row counts.
            last = torch.where(counted_N.any(), neutral, 0.0).to(logp_N.dtype).view(1)
            return torch.cat([torch.where(counted_N, log_ratio_N, neutral), last])

        log_ratio_N = self.objective.log_ratio(tokens).clamp(max=MAX_LOG_RATIO)
        low_N, high_N = self.objective.clipped(tokens)
        metrics = {
            "clip_ratio/low": share(low_N),
            "clip_ratio/high": share(high_N),
            "ratio/mean": 1 + weighted_mean(torch.expm1(log_ratio_N)),
            "ratio/min": counted_log_ratios(torch.inf).min().exp(),
            "ratio/max": counted_log_ratios(-torch.inf).max().exp(),
            "entropy": weighted_mean(entropy_N),
            "informative": torch.where(whole == 0, 0.0, total / whole),
        }
        if self.ref_logp_N is not None:
            metrics["kl"] = weighted_mean(k3(tokens.logp_N, self.ref_logp_N))
        return metrics

    def _tokens(self, logp_N: Tensor) -> Tokens:
        old_logp_N = logp_N.detach() if self.old_logp_N is None else self.old_logp_N
        return Tokens(logp_N, old_logp_N, self.advantages_N, self.mask_N, self.sequence_ids_N, self.num_sequences)

    def _kl(self, tokens: Tokens) -> Tensor:
        assert self.ref_logp_N is not None, "checked where the terms are made"
        kl_N = ESTIMATORS[self.kl](tokens.logp_N, self.ref_logp_N)
        return kl_N * bounded_exp(self.objective.log_ratio(tokens)) if self.kl == "k3_is" else kl_N
