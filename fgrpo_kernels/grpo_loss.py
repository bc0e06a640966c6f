"""The GRPO family's loss from logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fgrpo_kernels import reference
from fgrpo_kernels.checks import (
    can_look_at,
    check_floating,
    check_positive,
    check_rows,
    check_targets,
    check_tensors,
    real_vocab_size,
)
from fgrpo_kernels.derivatives import as_constant, needs_reference
from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu import grpo_loss as gpu
from fgrpo_kernels.gpu import policy_terms as gpu_terms
from fgrpo_kernels.kl import KL
from fgrpo_kernels.layout import flatten_terms
from fgrpo_kernels.objectives import Objective, PPOClip, device_form
from fgrpo_kernels.results import GRPOLoss
from fgrpo_kernels.rowwise import accumulation_dtype
from fgrpo_kernels.token_logprobs import logprobs_of_live_rows


def grpo_loss(
    logits: Tensor,
    targets: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    old_logp: Tensor | None = None,
    ref_logp: Tensor | None = None,
    policy_factor: Tensor | None = None,
    mask: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    objective: Objective = PPOClip(),  # noqa: B008  (frozen)
    beta: float = 0.0,
    kl: KL = "k3",
    entropy_coef: float = 0.0,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> GRPOLoss:
    """`sum_t weights_t * (policy_factor_t * l_t + beta * KL_t - entropy_coef * H_t)`, differentiable in the logits.

    Two layouts: padded, rows `[B, T]`, each row of B a sequence; packed, rows `[N]`.
    All other tensors are constants to the gradient. The arithmetic is float32, or float64 for float64 logits.

    Args:
        logits: `[B, T, V]` or `[N, V]`, any floating dtype; may be strided, as in `logits[:, :-1]`.
        targets: `[B, T]` or `[N]` int64. Rows that are left out may hold anything, such as -100.
        advantages: padded `[B]`, `[B, 1]` or `[B, T]`; packed `[N]`, or `[S]` with `sequence_ids` (read as one a row
            if both fit).
        weights: one a row. Masks, reductions and data-parallel normalisers all come in here: see `token_weights`.
            A mask itself is none: bool and integers are refused, 0 and 1 in floating point warned of once.
            A row of weight 0 adds exactly 0 to loss and gradient, whatever its other entries are, NaN included.
        old_logp: log-probabilities under the policy that sampled the tokens; None means the current ones (ratio 1).
        ref_logp: those under the reference model; needed for `beta != 0`, otherwise only the `kl` metric uses them.
        policy_factor: multiplies the policy term alone: importance corrections, off-policy or entropy masks.
            One a row; `[B, 1]` too when padded.
        mask: the tokens that sequence-level means take in; default `weights != 0`. A token-level objective has no
            use for it.
        sequence_ids: packed only: the sequence of each row, `[N]` integers from 0. Order does not matter.
        objective: the policy term `l`.
        beta: coefficient of the KL term.
        kl: its estimator: "k1", "k2", "k3", or "k3_is" (k3 times the objective's importance ratio, with gradient
            through both, as TRL's `use_bias_correction_kl`).
        entropy_coef: coefficient of the entropy bonus.
        temperature: divides the logits.
        vocab_size: columns from here on are padding of the vocabulary: no probability, no gradient.

    Returns:
        GRPOLoss(loss, metrics). Metrics are weighted means `sum_t weights_t x_t / sum_t weights_t` over the
        *informative* rows: those of weight other than 0 and, when `beta = entropy_coef = 0`, with a policy term
        other than 0 (advantage and factor). The others are never computed. With no such row, means are 0 and ratios 1.

        - `clip_ratio/low`, `clip_ratio/high`: tokens whose ratio is under the lower bound with a negative advantage,
          over the upper one with a positive advantage;
        - `ratio/mean`, and unweighted `ratio/min`, `ratio/max`: importance ratio of the objective's level;
        - `entropy`: in nats;
        - `kl`: the k3 estimate, if `ref_logp` is given, whichever estimator the loss uses;
        - `informative`: share of the whole weight that is on informative rows. `clip_ratio/low * informative`
          is the clip ratio over all weighted tokens.

    Example:
        >>> logits = torch.zeros(2, 3, 5, requires_grad=True)  # two sequences of three tokens
        >>> targets, mask = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> loss, metrics = grpo_loss(logits, targets, torch.tensor([1.0, -1.0]), token_weights(mask))
        >>> loss.backward()
        >>> round(loss.item(), 4), round(metrics["entropy"].item(), 4)
        (-0.2, 1.6094)

    Raises:
        TypeError, ValueError: wrong types, devices, dtypes, shapes or options, by name.
        NotImplementedError: a gradient with `create_graph=True`, or a derivative asked for in a constant.
    """
    check_tensors("grpo_loss", logits=logits, targets=targets)
    check_floating("grpo_loss", "logits", logits)
    check_positive("grpo_loss", "temperature", temperature)
    vocab_size = real_vocab_size("grpo_loss", vocab_size, logits.shape[-1])
    of_terms: dict[str, Any] = {
        "advantages": advantages,
        "weights": weights,
        "old_logp": old_logp,
        "ref_logp": ref_logp,
        "policy_factor": policy_factor,
        "mask": mask,
        "sequence_ids": sequence_ids,
        "objective": objective,
        "beta": beta,
        "kl": kl,
        "entropy_coef": entropy_coef,
    }
    terms = flatten_terms("grpo_loss", logits.shape[:-1], accumulation_dtype(logits.dtype), targets, **of_terms)
    check_rows("grpo_loss", "targets", targets, logits.shape[:-1])
    if needs_reference(logits):
        return reference.grpo_loss(logits, targets, **of_terms, temperature=temperature, vocab_size=vocab_size)
    targets_N = as_constant(targets).reshape(-1)
    form = device_form(objective)
    if uses_triton(logits) and form is not None:
        live_N = terms.informative_mask() if can_look_at(targets) else None
        check_targets("grpo_loss", targets_N, vocab_size, live_N)
        if gpu.takes_one_pass(logits, terms):
            return gpu.loss_in_one_pass(logits, targets_N, terms, form, temperature, vocab_size)
        sequences = gpu_terms.sequences_of(terms)
        live_N = gpu_terms.rows_that_count(terms, sequences)
        logp_N, entropy_N = logprobs_of_live_rows(logits, targets_N, live_N, temperature, vocab_size)
        return gpu_terms.loss_of_logprobs(logp_N, entropy_N, live_N, terms, sequences, form)
    live_N = terms.informative_mask()
    check_targets("grpo_loss", targets_N, vocab_size, live_N)
    terms = terms.blanked(live_N)
    logp_N, entropy_N = logprobs_of_live_rows(logits, targets_N, live_N, temperature, vocab_size)
    return GRPOLoss(terms.loss(logp_N, entropy_N), terms.metrics(logp_N, entropy_N))
