"""The loss's terms of token rows on a GPU: of one row in the loss kernel, of blocks of rows where they are summed.

The device form of `fgrpo_kernels.policy_terms`, which says what the terms and the metrics mean.
"""

from __future__ import annotations

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import exp, expm1


@jit
def load_terms(
    row: tl.tensor,
    exists: tl.tensor,
    advantages_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    old_ptr: tl.tensor,
    ref_ptr: tl.tensor,
    ALL_WEIGHTED: tl.constexpr,
    EARLY: tl.constexpr,
) -> tl.tensor:
    """`(live, advantage, weight, factor, old, ref)` of rows; what does not count of a row is 0, whatever is stored.

    Live are the rows with a weight, and unless ALL_WEIGHTED only those with a policy term too. EARLY: all is read at
    once, which is sooner there, where a term is otherwise read only of rows for which the one before it counts.
    """
    weight = tl.load(weights_ptr + row, mask=exists, other=0.0)
    weighted = weight != 0
    advantage = _term(advantages_ptr, row, exists, weighted, EARLY)
    policy = weighted & (advantage != 0)
    factor = 1.0
    if factor_ptr is not None:
        factor = _term(factor_ptr, row, exists, weighted, EARLY)
        policy = policy & (factor != 0)
    live = weighted if ALL_WEIGHTED else policy
    old = 0.0
    if old_ptr is not None:
        old = _term(old_ptr, row, exists, live, EARLY)
    ref = 0.0
    if ref_ptr is not None:
        ref = _term(ref_ptr, row, exists, live, EARLY)
    return live, advantage, weight, factor, old, ref


@jit
def _term(ptr: tl.tensor, row: tl.tensor, exists: tl.tensor, counts: tl.tensor, EARLY: tl.constexpr) -> tl.tensor:
    """One term of rows, 0 where it does not count."""
    if EARLY:
        return tl.where(counts, tl.load(ptr + row, mask=exists, other=0.0), 0.0)
    return tl.load(ptr + row, mask=counts, other=0.0)


@jit
def row_terms(
    logp: tl.tensor,
    entropy: tl.tensor,
    old: tl.tensor,
    ref: tl.tensor,
    gathered: tl.tensor,
    advantage: tl.tensor,
    factor: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    beta: tl.tensor,
    entropy_coef: tl.tensor,
    OBJECTIVE: tl.constexpr,
    OWN_RATIO: tl.constexpr,
    KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
) -> tl.tensor:
    """`(term, slope in logp, slope in what is gathered, low, high, ratio, ratio - 1)` of rows, before their weights.

    `gathered` is what the objective gathers over a row's sequence; token by token, the row's log-ratio.
    """
    log_ratio = logp - old
    policy, own, shared, low, high = OBJECTIVE(logp, log_ratio, gathered, advantage, a, b, c, d)
    term, own, shared = factor * policy, factor * own, factor * shared
    log_ratio = log_ratio if OWN_RATIO else gathered
    bounded = tl.minimum(log_ratio, 80.0)
    ratio = exp(bounded)
    if KL is not None:
        kl, kl_slope, kl_ratio_slope = KL(ref - logp, ratio, tl.where(log_ratio <= 80.0, ratio, 0.0))
        term += beta * kl
        own += beta * kl_slope
        if OWN_RATIO:
            own += beta * kl_ratio_slope
        else:
            shared += beta * kl_ratio_slope
    if HAS_ENTROPY:
        term -= entropy_coef * entropy
    # Minimum and maximum drop a NaN, which must not hide here.
    nan = logp + gathered
    broken = nan != nan
    own, shared = tl.where(broken, nan, own), tl.where(broken, nan, shared)
    return tl.where(broken, nan, term), own, shared, low, high, ratio, expm1(bounded)


@jit
def next_rows(first: tl.tensor, end: tl.tensor, order_ptr: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """`(rows, which of them exist)` of a sequence's members `first` to `first + BLOCK`; `order` lists rows by sequence,
    None if they are that already."""
    member = first + tl.arange(0, BLOCK).to(tl.int64)
    exists = member < end
    row = member
    if order_ptr is not None:
        row = tl.load(order_ptr + member, mask=exists, other=0)
    return row, exists


@jit
def sequence_bounds(sequence: tl.tensor, starts_ptr: tl.tensor, length: tl.tensor, N: tl.tensor) -> tl.tensor:
    """First member of a sequence and the one after its last; without `starts`, all have `length`, but for the end."""
    start = sequence * length
    end = tl.minimum(start + length, N)
    if starts_ptr is not None:
        start, end = tl.load(starts_ptr + sequence), tl.load(starts_ptr + sequence + 1)
    return start, end
