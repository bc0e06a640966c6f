"""From the two layouts that callers have, padded and packed, to N rows of constants for the loss.

B sequences   T tokens of the longest   N rows: B*T, or packed   S sequences of a packed batch
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgrpo_kernels.checks import can_look_at, check_logprobs, check_rows, check_tensors, check_weights
from fgrpo_kernels.derivatives import as_constant, check_constants
from fgrpo_kernels.kl import ESTIMATORS, KL
from fgrpo_kernels.objectives import Objective
from fgrpo_kernels.objectives.base import is_objective
from fgrpo_kernels.policy_terms import PolicyTerms


def flatten_terms(
    op: str,
    rows_shape: torch.Size,
    dtype: torch.dtype,
    targets: Tensor,
    *,
    advantages: Tensor,
    weights: Tensor,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    policy_factor: Tensor | None,
    mask: Tensor | None,
    sequence_ids: Tensor | None,
    objective: Objective,
    beta: float,
    kl: KL,
    entropy_coef: float,
) -> PolicyTerms:
    """Check the arguments that `grpo_loss` and `linear_grpo_loss` share, and flatten them to `[N]` vectors of `dtype`.

    `rows_shape` is `[B, T]` for the padded layout and `[N]` for the packed one; the other tensors are on the targets'
    device.
    """
    if len(rows_shape) not in (1, 2):
        raise ValueError(
            f"{op}: expected rows [B, T] (padded) or [N] (packed) before the last dimension, got {list(rows_shape)}"
        )
    required = {"advantages": advantages, "weights": weights}
    optional = {"old_logp": old_logp, "ref_logp": ref_logp, "policy_factor": policy_factor, "mask": mask}
    check_tensors(op, optional | {"sequence_ids": sequence_ids}, targets=targets, **required)
    if not is_objective(objective):
        raise TypeError(f"{op}: objective must be an objective such as PPOClip(), got {objective!r}")
    if kl not in ESTIMATORS:
        raise ValueError(f"{op}: kl must be one of {', '.join(ESTIMATORS)}, got {kl!r}")
    if beta != 0 and ref_logp is None:
        raise ValueError(f"{op}: beta = {beta} asks for a KL term, which needs ref_logp")

    check_constants(op, **required, **optional)

    def per_row(name: str, x: Tensor) -> Tensor:
        if len(rows_shape) == 2 and x.shape == (rows_shape[0], 1):
            x = x.expand(rows_shape)
        check_rows(op, name, x, rows_shape)
        return as_constant(x).reshape(-1).to(dtype).contiguous()

    def optional_per_row(name: str, x: Tensor | None) -> Tensor | None:
        return None if x is None else per_row(name, x)

    check_weights(op, weights)
    weights_N = per_row("weights", weights)
    ids_N, num_sequences, advantages_N = _sequences(op, rows_shape, advantages, sequence_ids, objective)
    mask_N = None if mask is None else per_row("mask", mask)
    if objective.sequence_level:
        mask_N = (weights_N if mask_N is None else mask_N) != 0
    old_logp_N, ref_logp_N = optional_per_row("old_logp", old_logp), optional_per_row("ref_logp", ref_logp)
    check_logprobs(op, "old_logp", old_logp_N, weights_N)
    check_logprobs(op, "ref_logp", ref_logp_N, weights_N)
    return PolicyTerms(
        advantages_N=per_row("advantages", advantages_N),
        weights_N=weights_N,
        policy_factor_N=optional_per_row("policy_factor", policy_factor),
        old_logp_N=old_logp_N,
        ref_logp_N=ref_logp_N,
        mask_N=mask_N if objective.sequence_level else None,
        sequence_ids_N=ids_N,
        num_sequences=num_sequences,
        sequence_length=rows_shape[1] if len(rows_shape) == 2 else None,
        objective=objective,
        beta=beta,
        kl=kl,
        entropy_coef=entropy_coef,
    )


def _sequences(
    op: str, rows_shape: torch.Size, advantages: Tensor, sequence_ids: Tensor | None, objective: Objective
) -> tuple[Tensor | None, int, Tensor]:
    """Sequence of each row `[N]` (None if nobody asks), a bound on the sequences, and advantages by row."""
    if len(rows_shape) == 2:
        if sequence_ids is not None:
            raise ValueError(
                f"{op}: sequence_ids belong to the packed layout; in [B, T] the rows of B are the sequences"
            )
        B, T = rows_shape
        if advantages.shape == (B,):
            advantages = advantages[:, None]
        ids_BT = torch.arange(B, device=advantages.device)[:, None].expand(B, T) if objective.sequence_level else None
        return None if ids_BT is None else ids_BT.reshape(-1), B, advantages

    if sequence_ids is None:
        if objective.sequence_level:
            raise ValueError(f"{op}: {objective!r} works on whole sequences: packed rows need sequence_ids [N]")
        return None, 0, advantages
    check_rows(op, "sequence_ids", sequence_ids, rows_shape)
    if sequence_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{op}: sequence_ids must be integers, got {sequence_ids.dtype}")
    by_sequence = advantages.shape != rows_shape
    num_sequences = advantages.shape[0] if by_sequence and advantages.ndim == 1 else rows_shape[0]
    found = "given"
    if can_look_at(sequence_ids) and sequence_ids.numel() > 0:
        lowest, highest = (int(x) for x in sequence_ids.aminmax())
        found = f"{lowest} to {highest}" if lowest < 0 or highest >= num_sequences else found
    if found != "given" or advantages.ndim != 1:
        raise ValueError(
            f"{op}: sequence_ids are {found} but advantages are {list(advantages.shape)}; expected one advantage per "
            f"row, [{rows_shape[0]}], or one per sequence, [B]; and ids in [0, {num_sequences})"
        )
    ids_N = sequence_ids.long()
    advantages_N = _by_sequence(advantages, ids_N) if by_sequence else advantages
    return ids_N if objective.sequence_level else None, num_sequences, advantages_N


def _by_sequence(advantages_B: Tensor, ids_N: Tensor) -> Tensor:
    """Each row's advantage; NaN for an id that could not be looked at and is none, where a GPU would stop for good."""
    if can_look_at(ids_N):
        return advantages_B[ids_N]
    known_N = (ids_N >= 0) & (ids_N < advantages_B.shape[0])
    return torch.where(known_N, advantages_B[ids_N * known_N], torch.nan)
