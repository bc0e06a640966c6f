"""From the rows' log-probabilities to the loss, its metrics and its slopes: kernels over `[N]` vectors.

A program takes one sequence, or, where rows do not depend on each other, a block of rows; a last one adds up what they
found. Everything is added in one order: the same bits every time.

N rows   S sequences, or blocks of rows
"""

from __future__ import annotations

from fgrpo_kernels.gpu.policy_rows import load_terms, next_rows, row_terms, sequence_bounds
from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import expm1_minus_x

NUM_SUMS = tl.constexpr(10)  # what a program of `policy_terms_kernel` finds

# Lengths and counts change with every batch, and the numbers with every setting: none may compile a kernel anew.
UNSPECIALISED = ["length", "N", "S", "a", "b", "c", "d", "beta", "entropy_coef"]


@jit(do_not_specialize=UNSPECIALISED)
def live_rows_kernel(
    live_ptr: tl.tensor,
    order_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    length: tl.tensor,
    N: tl.tensor,
    advantages_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    ALL_WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program s: which rows of sequence s the loss depends on: the informative ones, and if there are any of them the
    masked ones too. Without a mask rows are on their own."""
    start, end = sequence_bounds(tl.program_id(0).to(tl.int64), starts_ptr, length, N)
    found = tl.zeros([BLOCK], tl.int32)
    for first in range(start, end, BLOCK):
        row, exists = next_rows(first, end, order_ptr, BLOCK)
        terms = load_terms(row, exists, advantages_ptr, weights_ptr, factor_ptr, None, None, ALL_WEIGHTED, False)
        live = terms[0]
        found = found | live.to(tl.int32)
        tl.store(live_ptr + row, live, mask=exists)
    if mask_ptr is not None:  # noqa: SIM102  (the compiler knows this one, and not the next)
        if tl.max(found, 0) > 0:
            for first in range(start, end, BLOCK):
                row, exists = next_rows(first, end, order_ptr, BLOCK)
                masked = tl.load(mask_ptr + row, mask=exists, other=0) != 0
                tl.store(live_ptr + row, masked, mask=masked)


@jit(do_not_specialize=UNSPECIALISED)
def policy_terms_kernel(
    sums_ptr: tl.tensor,
    grad_logp_ptr: tl.tensor,
    grad_entropy_ptr: tl.tensor,
    order_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    length: tl.tensor,
    N: tl.tensor,
    logp_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    live_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    advantages_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    old_ptr: tl.tensor,
    ref_ptr: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    beta: tl.tensor,
    entropy_coef: tl.tensor,
    OBJECTIVE: tl.constexpr,
    GATHER: tl.constexpr,
    MEAN: tl.constexpr,
    OWN_RATIO: tl.constexpr,
    KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program s: what sequence s adds to the loss and the metrics, and unless `grad_logp_ptr` is None, the loss's
    slopes in its rows' logp and entropy.

    With GATHER the objective depends on a sum or mean over the sequence's masked rows, which takes one more loop before
    and after. A row counts if it has a weight and is live (`live_ptr`; None: if it is informative).
    """
    sequence = tl.program_id(0).to(tl.int64)
    start, end = sequence_bounds(sequence, starts_ptr, length, N)
    # Of the rows that are listed as live, all that have a weight count.
    ALL_WEIGHTED: tl.constexpr = (KL is not None) or HAS_ENTROPY or (live_ptr is not None)

    gathered, share = 0.0, 1.0
    if GATHER is not None:
        total = tl.zeros([BLOCK], tl.float32)
        count = tl.zeros([BLOCK], tl.float32)
        for first in range(start, end, BLOCK):
            row, exists = next_rows(first, end, order_ptr, BLOCK)
            masked = exists & (tl.load(mask_ptr + row, mask=exists, other=0) != 0)
            masked = masked & (tl.load(live_ptr + row, mask=masked, other=0) != 0)
            value, _ = _gathered_of_rows(
                row, masked, logp_ptr, old_ptr, advantages_ptr, weights_ptr, a, b, c, d, GATHER
            )
            total += tl.where(masked, value, 0.0)
            count += masked.to(tl.float32)
        if MEAN:
            share = 1 / tl.maximum(tl.sum(count, 0), 1.0)
        gathered = tl.sum(total, 0) * share

    loss_sum = tl.zeros([BLOCK], tl.float32)
    weight_sum = tl.zeros([BLOCK], tl.float32)
    live_sum = tl.zeros([BLOCK], tl.float32)
    low_sum = tl.zeros([BLOCK], tl.float32)
    high_sum = tl.zeros([BLOCK], tl.float32)
    ratio_sum = tl.zeros([BLOCK], tl.float32)
    entropy_sum = tl.zeros([BLOCK], tl.float32)
    kl_sum = tl.zeros([BLOCK], tl.float32)
    shared_sum = tl.zeros([BLOCK], tl.float32)
    smallest = tl.full([BLOCK], float("inf"), tl.float32)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(start, end, BLOCK):
        row, exists = next_rows(first, end, order_ptr, BLOCK)
        weight_sum += tl.load(weights_ptr + row, mask=exists, other=0.0)
        listed = exists
        if live_ptr is not None:
            listed = exists & (tl.load(live_ptr + row, mask=exists, other=0) != 0)
        terms = load_terms(row, listed, advantages_ptr, weights_ptr, factor_ptr, old_ptr, ref_ptr, ALL_WEIGHTED, False)
        live, advantage, weight, factor, old, ref = terms
        logp = tl.load(logp_ptr + row, mask=live, other=0.0)
        entropy = tl.load(entropy_ptr + row, mask=live, other=0.0)
        if old_ptr is None:
            old = logp
        of_row = gathered + tl.zeros([BLOCK], tl.float32) if GATHER is not None else logp - old
        term, own, shared, low, high, ratio, ratio_less_1 = row_terms(
            logp, entropy, old, ref, of_row, advantage, factor, a, b, c, d, beta, entropy_coef,
            OBJECTIVE, OWN_RATIO, KL, HAS_ENTROPY,
        )  # fmt: skip
        weight = tl.where(live, weight, 0.0)
        live_sum += weight
        loss_sum += tl.where(live, weight * term, 0.0)
        low_sum += tl.where(live & low, weight, 0.0)
        high_sum += tl.where(live & high, weight, 0.0)
        ratio_sum += weight * ratio_less_1
        entropy_sum += weight * entropy
        if ref_ptr is not None:
            kl_sum += weight * expm1_minus_x(tl.minimum(ref - logp, 80.0))
        smallest = tl.minimum(smallest, tl.where(live, ratio, float("inf")))
        largest = tl.maximum(largest, tl.where(live, ratio, float("-inf")))
        if grad_logp_ptr is not None:
            if GATHER is not None:
                shared_sum += tl.where(live, weight * shared, 0.0)
            else:
                own += shared
            tl.store(grad_logp_ptr + row, tl.where(live, weight * own, 0.0), mask=exists)
            if grad_entropy_ptr is not None:
                tl.store(grad_entropy_ptr + row, -entropy_coef * weight, mask=exists)

    if GATHER is not None and grad_logp_ptr is not None:
        slope = tl.sum(shared_sum, 0) * share
        tl.debug_barrier()  # what other threads have stored is read below
        for first in range(start, end, BLOCK):
            row, exists = next_rows(first, end, order_ptr, BLOCK)
            masked = exists & (tl.load(mask_ptr + row, mask=exists, other=0) != 0)
            masked = masked & (tl.load(live_ptr + row, mask=masked, other=0) != 0)
            _, passed = _gathered_of_rows(
                row, masked, logp_ptr, old_ptr, advantages_ptr, weights_ptr, a, b, c, d, GATHER
            )
            own = tl.load(grad_logp_ptr + row, mask=masked, other=0.0)
            tl.store(grad_logp_ptr + row, own + passed * slope, mask=masked)

    out_ptr = sums_ptr + sequence * NUM_SUMS
    tl.store(out_ptr, tl.sum(loss_sum, 0))
    tl.store(out_ptr + 1, tl.sum(low_sum, 0))
    tl.store(out_ptr + 2, tl.sum(high_sum, 0))
    tl.store(out_ptr + 3, tl.sum(ratio_sum, 0))
    tl.store(out_ptr + 4, tl.min(smallest, 0))
    tl.store(out_ptr + 5, tl.max(largest, 0))
    tl.store(out_ptr + 6, tl.sum(entropy_sum, 0))
    tl.store(out_ptr + 7, tl.sum(live_sum, 0))
    tl.store(out_ptr + 8, tl.sum(kl_sum, 0))
    tl.store(out_ptr + 9, tl.sum(weight_sum, 0))


@jit
def _gathered_of_rows(
    row: tl.tensor,
    masked: tl.tensor,
    logp_ptr: tl.tensor,
    old_ptr: tl.tensor,
    advantages_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    GATHER: tl.constexpr,
) -> tl.tensor:
    """What each of some rows gives to its sequence's sum, and the slope of that in its logp."""
    logp = tl.load(logp_ptr + row, mask=masked, other=0.0)
    old = logp
    if old_ptr is not None:
        old = tl.load(old_ptr + row, mask=masked, other=0.0)
    weighted = masked & (tl.load(weights_ptr + row, mask=masked, other=0.0) != 0)
    advantage = tl.load(advantages_ptr + row, mask=weighted, other=0.0)
    return GATHER(logp - old, advantage, a, b, c, d)


@jit(do_not_specialize=["S", "N"])
def finish_kernel(
    loss_ptr: tl.tensor,
    metrics_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    S: tl.tensor,
    N: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program: the loss, and the metrics in the order of METRICS, from the sums of all sequences.

    Rows whose sequence does not exist (`starts` leaves them out) make the loss NaN.
    """
    loss, low, high, ratio = 0.0, 0.0, 0.0, 0.0
    entropy, live, kl, whole = 0.0, 0.0, 0.0, 0.0
    smallest, largest = float("inf"), float("-inf")
    for first in range(0, S, BLOCK):
        sequence = first + tl.arange(0, BLOCK).to(tl.int64)
        there = sequence < S
        in_ptr = sums_ptr + sequence * NUM_SUMS
        loss += tl.sum(tl.load(in_ptr, mask=there, other=0.0), 0)
        low += tl.sum(tl.load(in_ptr + 1, mask=there, other=0.0), 0)
        high += tl.sum(tl.load(in_ptr + 2, mask=there, other=0.0), 0)
        ratio += tl.sum(tl.load(in_ptr + 3, mask=there, other=0.0), 0)
        smallest = tl.minimum(smallest, tl.min(tl.load(in_ptr + 4, mask=there, other=float("inf")), 0))
        largest = tl.maximum(largest, tl.max(tl.load(in_ptr + 5, mask=there, other=float("-inf")), 0))
        entropy += tl.sum(tl.load(in_ptr + 6, mask=there, other=0.0), 0)
        live += tl.sum(tl.load(in_ptr + 7, mask=there, other=0.0), 0)
        kl += tl.sum(tl.load(in_ptr + 8, mask=there, other=0.0), 0)
        whole += tl.sum(tl.load(in_ptr + 9, mask=there, other=0.0), 0)
    if starts_ptr is not None:
        complete = (tl.load(starts_ptr) == 0) & (tl.load(starts_ptr + S) == N)
        loss = tl.where(complete, loss, float("nan"))
    none = largest < smallest  # no row counts
    share = tl.where(live == 0, 0.0, 1 / tl.where(live == 0, 1.0, live))
    tl.store(loss_ptr, loss)
    tl.store(metrics_ptr, low * share)
    tl.store(metrics_ptr + 1, high * share)
    tl.store(metrics_ptr + 2, 1 + ratio * share)
    tl.store(metrics_ptr + 3, tl.where(none, 1.0, smallest))
    tl.store(metrics_ptr + 4, tl.where(none, 1.0, largest))
    tl.store(metrics_ptr + 5, entropy * share)
    tl.store(metrics_ptr + 6, tl.where(whole == 0, 0.0, live / tl.where(whole == 0, 1.0, whole)))
    tl.store(metrics_ptr + 7, kl * share)
