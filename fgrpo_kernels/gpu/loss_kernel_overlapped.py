"""The kernel of the token-level loss with a program for many rows: a row's gradient is written while the next is read.

So no multiprocessor stands still while a row begins and ends, and what L2 has to hold stays about one row a program: as
much of the new row as is gone of the old. The same arithmetic in the same order as `loss_kernel`: the same bits.

N rows   V columns
"""

from __future__ import annotations

from fgrpo_kernels.gpu.loss_kernel import UNSPECIALISED
from fgrpo_kernels.gpu.policy_rows import load_terms, row_terms
from fgrpo_kernels.gpu.row_gradient import (
    row_factors,
    tile_gradient,
    write_special_tiles,
    write_zero_row,
    write_zeros,
)
from fgrpo_kernels.gpu.row_softmax import (
    add_special_tiles,
    add_tile,
    finish_row,
    merge_threads,
    row_offset,
    tile_offsets,
)
from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import LOG2_E


@jit(do_not_specialize=[*UNSPECIALISED, "N"])
def grpo_loss_overlapped_kernel(
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
    N: tl.tensor,
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
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Program p of so many: rows p, p + programs, p + 2 programs and so on; see `grpo_loss_kernel` for a row."""
    ALL_WEIGHTED: tl.constexpr = (KL is not None) or HAS_ENTROPY
    TILE: tl.constexpr = PARTS * THREADS * VECTOR
    offsets = tile_offsets(PARTS, THREADS, VECTOR)
    scale = inv_temperature * LOG2_E
    last = (vocab - 1) // TILE
    first = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)

    # The row before, whose gradient is to be written: none yet.
    was_live = first < 0
    was_ptr, was_grad_ptr = logits_ptr + first * 0, grad_ptr + first * 0
    was_target, was_plain = last * 0, last * 0
    was_peak, was_shift = scale * 0, scale * 0
    was_factor, was_log_factor, was_at_target = scale * 0, scale * 0, scale * 0
    for row in range(first, N + programs, programs):  # and once more for the last row's gradient
        exists = row < N
        terms = load_terms(row, exists, advantages_ptr, weights_ptr, factor_ptr, old_ptr, ref_ptr, ALL_WEIGHTED, True)
        live, advantage, weight, factor, old, ref = terms
        live = live & exists
        target = tl.load(targets_ptr + row, mask=exists, other=0).to(tl.int32)
        row_ptr = logits_ptr + row_offset(row, T, step_b, step_t, unit)
        inside = (target >= 0) & (target < vocab) & live
        target_logit = tl.load(row_ptr + target, mask=inside, other=float("nan")).to(tl.float32)
        home = tl.minimum(tl.maximum(target, 0), vocab - 1) // TILE
        was_home = tl.minimum(tl.maximum(was_target, 0), vocab - 1) // TILE
        plain = tl.where(live, last - (home < last).to(tl.int32), 0)

        highest = tl.full([THREADS], float("-inf"), tl.float32)
        total = tl.zeros([THREADS], tl.float32)
        dot = tl.zeros([THREADS], tl.float32)
        for k in tl.range(0, tl.maximum(plain, was_plain), num_stages=STAGES):
            where = (k + (k >= home).to(tl.int32)) * TILE + offsets
            scanned = tl.load(
                row_ptr + where, mask=(where >= 0) & (k < plain), other=float("-inf"), eviction_policy=AGAIN
            )
            j = was_plain - 1 - k
            was_where = (j + (j >= was_home).to(tl.int32)) * TILE + offsets
            written = (was_where >= 0) & (j >= 0)
            x = tl.load(was_ptr + was_where, mask=written, other=0.0, eviction_policy="evict_first").to(tl.float32)
            grad = tile_gradient(x, was_peak, scale, was_shift, was_factor, was_log_factor, HAS_ENTROPY)
            grad = grad.to(grad_ptr.dtype.element_ty)
            tl.store(was_grad_ptr + was_where, grad, mask=written, cache_modifier=".cs")
            highest, total, dot = add_tile(scanned.to(tl.float32), highest, total, dot, scale)

        if was_live:
            write_special_tiles(
                was_ptr, was_grad_ptr, was_target, vocab, columns, was_peak, scale, was_shift,
                was_factor, was_log_factor, was_at_target, HAS_ENTROPY, PARTS, THREADS, VECTOR,
            )  # fmt: skip
            write_zeros(was_grad_ptr, (last + 1) * TILE, columns, PARTS, THREADS, VECTOR)
        grad_row_ptr = grad_ptr + row_offset(row, T, grad_step_b, grad_step_t, grad_unit)
        logp, entropy, peak, log_sum = 0.0, 0.0, 0.0, 0.0
        if live:
            highest, total, dot = add_special_tiles(
                row_ptr, target, vocab, highest, total, dot, scale, PARTS, THREADS, VECTOR
            )
            peak, others, row_dot = merge_threads(highest, total, dot, target_logit, inv_temperature)
            log_sum, logp, entropy = finish_row(peak, others, row_dot, target_logit, inv_temperature)
        elif exists:
            write_zero_row(grad_row_ptr, columns, PARTS, THREADS, VECTOR)
        tl.store(logp_ptr + row, logp, mask=exists)
        tl.store(entropy_ptr + row, entropy, mask=exists)
        if old_ptr is None:
            old = logp
        _, own, shared, _, _, _, _ = row_terms(
            logp, entropy, old, ref, logp - old, advantage, factor, a, b, c, d, beta, entropy_coef,
            OBJECTIVE, False, KL, HAS_ENTROPY,
        )  # fmt: skip
        was_factor, was_log_factor, was_at_target = row_factors(
            logp, entropy, weight * (own + shared), -weight * entropy_coef, inv_temperature, HAS_ENTROPY
        )
        was_live, was_target, was_plain = live, target, plain
        was_ptr, was_grad_ptr = row_ptr, grad_row_ptr
        was_peak, was_shift = peak, log_sum * LOG2_E
