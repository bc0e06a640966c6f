"""From the two layouts that callers have, padded and packed, to N rows of constants for the loss.

B sequences   T tokens of the longest   N rows: B*T, or packed   S sequences of a packed batch
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgrpo_kernels.checks import check_rows
from fgrpo_kernels.kl import ESTIMATORS, KL
from fgrpo_kernels.objectives import Objective
from fgrpo_kernels.policy_terms import PolicyTerms


def flatten_terms(
    op: str,
    rows_shape: torch.Size,
    dtype: torch.dtype,
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

    `rows_shape` is `[B, T]` for the padded layout and `[N]` for the packed one.
    """
    if len(rows_shape) not in (1, 2):
        raise ValueError(
            f"{op}: expected rows [B, T] (padded) or [N] (packed) before the last dimension, got {list(rows_shape)}"
        )
    if not isinstance(objective, Objective):
        raise TypeError(f"{op}: objective must be an objective such as PPOClip(), got {objective!r}")
    if kl not in ESTIMATORS:
        raise ValueError(f"{op}: kl must be one of {', '.join(ESTIMATORS)}, got {kl!r}")
    if beta != 0 and ref_logp is None:
        raise ValueError(f"{op}: beta = {beta} asks for a KL term, which needs ref_logp")

    def per_row(name: str, x: Tensor) -> Tensor:
        if len(rows_shape) == 2 and x.shape == (rows_shape[0], 1):
            x = x.expand(rows_shape)
        check_rows(op, name, x, rows_shape)
        return x.detach().reshape(-1).to(dtype)

    def optional_per_row(name: str, x: Tensor | None) -> Tensor | None:
        return None if x is None else per_row(name, x)

    weights_N = per_row("weights", weights)
    ids_N, num_sequences, advantages_N = _sequences(op, rows_shape, advantages, sequence_ids, objective)
    return PolicyTerms(
        advantages_N=per_row("advantages", advantages_N),
        weights_N=weights_N,
        policy_factor_N=optional_per_row("policy_factor", policy_factor),
        old_logp_N=optional_per_row("old_logp", old_logp),
        ref_logp_N=optional_per_row("ref_logp", ref_logp),
        mask_N=weights_N != 0 if mask is None else per_row("mask", mask) != 0,
        sequence_ids_N=ids_N if objective.sequence_level else None,
        num_sequences=num_sequences,
        total_weight=weights_N.sum(),
        objective=objective,
        beta=beta,
        kl=kl,
        entropy_coef=entropy_coef,
    )


def _sequences(
    op: str, rows_shape: torch.Size, advantages: Tensor, sequence_ids: Tensor | None, objective: Objective
) -> tuple[Tensor | None, int, Tensor]:
    """Sequence of each row `[N]` (None if unknown), number of sequences, and advantages by row."""
    device = advantages.device
    if len(rows_shape) == 2:
        if sequence_ids is not None:
            raise ValueError(
                f"{op}: sequence_ids belong to the packed layout; in [B, T] the rows of B are the sequences"
            )
        B, T = rows_shape
        if advantages.shape == (B,):
            advantages = advantages[:, None]
        return torch.arange(B, device=device).repeat_interleave(T), B, advantages

    if sequence_ids is None:
        if objective.sequence_level:
            raise ValueError(f"{op}: {objective!r} works on whole sequences: packed rows need sequence_ids [N]")
        return None, 0, advantages
    check_rows(op, "sequence_ids", sequence_ids, rows_shape)
    if sequence_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{op}: sequence_ids must be integers, got {sequence_ids.dtype}")
    lowest, highest = (int(x) for x in sequence_ids.aminmax()) if sequence_ids.numel() else (0, -1)
    by_sequence = advantages.shape != rows_shape
    num_sequences = len(advantages) if by_sequence else highest + 1
    if lowest < 0 or highest >= num_sequences or advantages.ndim != 1:
        raise ValueError(
            f"{op}: sequence_ids are {lowest} to {highest} but advantages are {list(advantages.shape)}; expected one "
            f"advantage per row, [{rows_shape[0]}], or one per sequence, [B] with ids in [0, B)"
        )
    ids_N = sequence_ids.long()
    return ids_N, num_sequences, advantages[ids_N] if by_sequence else advantages
