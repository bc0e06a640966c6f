"""The kernel of the token-level loss: a row's log-probability, entropy and gradient, two reads of it and one write.

N rows   V columns
"""

from __future__ import annotations

from fgrpo_kernels.gpu.policy_rows import load_terms, row_terms
from fgrpo_kernels.gpu.row_gradient import write_row_gradient, write_zero_row
from fgrpo_kernels.gpu.row_softmax import hold_tiles, row_offset, row_statistics
from fgrpo_kernels.gpu.token_logprobs import UNSPECIALISED_WITH_GRADIENT
from fgrpo_kernels.jit import jit, tl

UNSPECIALISED = [*UNSPECIALISED_WITH_GRADIENT, "a", "b", "c", "d", "beta", "entropy_coef"]


@jit(do_not_specialize=UNSPECIALISED)
def grpo_loss_kernel(
    logits_ptr: tl.tensor,
    step_b: tl.tensor,
    step_t: tl.tensor,
    unit: tl.tensor,
    grad_ptr: tl.tensor,
    grad_step_b: tl.tensor,
    grad_step_t: tl.tensor,
    grad_unit: tl.tensor,
    T: tl.tensor,
    targets_ptr: tl.tensor,
    advantages_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    old_ptr: tl.tensor,
    ref_ptr: tl.tensor,
    logp_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    vocab: tl.tensor,
    columns: tl.tensor,
    inv_temperature: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    beta: tl.tensor,
    entropy_coef: tl.tensor,
    OBJECTIVE: tl.constexpr,
    KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    AGAIN: tl.constexpr,
    STAGES: tl.constexpr,
    HOLD: tl.constexpr,
    EARLY: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Program n: logp and entropy of row n, and its gradient unless `grad_ptr` is None; nothing is read of a row that
    is not informative."""
    row = tl.program_id(0).to(tl.int64)
    ALL_WEIGHTED: tl.constexpr = (KL is not None) or HAS_ENTROPY
    terms = load_terms(row, True, advantages_ptr, weights_ptr, factor_ptr, old_ptr, ref_ptr, ALL_WEIGHTED, EARLY)
    live, advantage, weight, factor, old, ref = terms
    logp, entropy = 0.0, 0.0
    target = 0
    if EARLY:
        target = tl.load(targets_ptr + row).to(tl.int32)
    if live:
        row_ptr = logits_ptr + row_offset(row, T, step_b, step_t, unit)
        if not EARLY:
            target = tl.load(targets_ptr + row).to(tl.int32)
        held = hold_tiles(row_ptr, target, vocab, HOLD, PARTS, THREADS, VECTOR)
        peak, log_sum, logp, entropy = row_statistics(
            row_ptr, target, vocab, inv_temperature, held, AGAIN, STAGES, HOLD, PARTS, THREADS, VECTOR
        )
        if grad_ptr is not None:
            if old_ptr is None:
                old = logp
            _, own, shared, _, _, _, _ = row_terms(
                logp, entropy, old, ref, logp - old, advantage, factor, a, b, c, d, beta, entropy_coef,
                OBJECTIVE, False, KL, HAS_ENTROPY,
            )  # fmt: skip
            write_row_gradient(
                row_ptr,
                grad_ptr + row_offset(row, T, grad_step_b, grad_step_t, grad_unit),
                target,
                vocab,
                columns,
                peak,
                log_sum,
                logp,
                entropy,
                weight * (own + shared),
                -weight * entropy_coef,
                inv_temperature,
                held,
                HAS_ENTROPY,
                STAGES,
                HOLD,
                PARTS,
                THREADS,
                VECTOR,
            )
    elif grad_ptr is not None:
        grad_row_ptr = grad_ptr + row_offset(row, T, grad_step_b, grad_step_t, grad_unit)
        write_zero_row(grad_row_ptr, columns, PARTS, THREADS, VECTOR)
    tl.store(logp_ptr + row, logp)
    tl.store(entropy_ptr + row, entropy)
