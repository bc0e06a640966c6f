"""The loss's terms of token rows on a GPU: of one row in the loss kernel, of blocks of rows where they are summed.

The device form of `fgrpo_kernels.policy_terms`, which says what the terms and the metrics mean.
"""

from __future__ import annotations

from fgrpo_kernels.gpu.numerics import exp, expm1, expm1_minus_x
from fgrpo_kernels.jit import jit, tl


@jit
def load_terms(
    row: tl.tensor,
    exists: tl.tensor,
    advantages_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    old_ptr: tl.tensor,
    ref_ptr: tl.tensor,
    KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
) -> tl.tensor:
    """`(live, advantage, weight, factor, old, ref)` of rows; what does not count of a row is 0, whatever is stored."""
    weight = tl.load(weights_ptr + row, mask=exists, other=0.0)
    weighted = weight != 0
    advantage = tl.load(advantages_ptr + row, mask=weighted, other=0.0)
    policy = weighted & (advantage != 0)
    factor = 1.0
    if factor_ptr is not None:
        factor = tl.load(factor_ptr + row, mask=weighted, other=0.0)
        policy = policy & (factor != 0)
    live = policy
    if HAS_ENTROPY:
        live = weighted
    if KL is not None:
        live = weighted
    old = 0.0
    if old_ptr is not None:
        old = tl.load(old_ptr + row, mask=live, other=0.0)
    ref = 0.0
    if ref_ptr is not None:
        ref = tl.load(ref_ptr + row, mask=live, other=0.0)
    return live, advantage, weight, factor, old, ref


@jit
def row_terms(
    logp: tl.tensor,
    entropy: tl.tensor,
    old: tl.tensor,
    ref: tl.tensor,
    advantage: tl.tensor,
    factor: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    beta: tl.tensor,
    entropy_coef: tl.tensor,
    OBJECTIVE: tl.constexpr,
    KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
) -> tl.tensor:
    """`(term, slope of the term in logp, low, high, ratio, ratio - 1)` of rows, before their weights."""
    log_ratio = logp - old
    policy, slope, low, high = OBJECTIVE(logp, log_ratio, advantage, a, b, c, d)
    term = factor * policy
    slope = factor * slope
    bounded = tl.minimum(log_ratio, 80.0)
    ratio = exp(bounded)
    if KL is not None:
        kl, kl_slope = KL(ref - logp, ratio, tl.where(log_ratio <= 80.0, ratio, 0.0))
        term += beta * kl
        slope += beta * kl_slope
    if HAS_ENTROPY:
        term -= entropy_coef * entropy
    # Minimum and maximum drop a NaN, which must not hide here.
    broken = logp != logp
    return tl.where(broken, logp, term), tl.where(broken, logp, slope), low, high, ratio, expm1(bounded)


@jit(do_not_specialize=["N", "a", "b", "c", "d", "beta", "entropy_coef"])
def sum_terms_kernel(
    out_ptr: tl.tensor,
    logp_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    advantages_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    old_ptr: tl.tensor,
    ref_ptr: tl.tensor,
    N: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    beta: tl.tensor,
    entropy_coef: tl.tensor,
    OBJECTIVE: tl.constexpr,
    KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: the loss and the metrics, in the order of `grpo_loss.METRICS`, from the rows' logp and entropy.

    One program adds in one order: the same bits every time. It reads about 30 bytes a row, next to the rows' logits
    nothing.
    """
    loss_sum = tl.zeros([BLOCK], tl.float32)
    weight_sum = tl.zeros([BLOCK], tl.float32)
    live_sum = tl.zeros([BLOCK], tl.float32)
    low_sum = tl.zeros([BLOCK], tl.float32)
    high_sum = tl.zeros([BLOCK], tl.float32)
    ratio_sum = tl.zeros([BLOCK], tl.float32)
    entropy_sum = tl.zeros([BLOCK], tl.float32)
    kl_sum = tl.zeros([BLOCK], tl.float32)
    smallest = tl.full([BLOCK], float("inf"), tl.float32)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, N, BLOCK):
        row = start + tl.arange(0, BLOCK).to(tl.int64)
        exists = row < N
        terms = load_terms(row, exists, advantages_ptr, weights_ptr, factor_ptr, old_ptr, ref_ptr, KL, HAS_ENTROPY)
        live, advantage, weight, factor, old, ref = terms
        logp = tl.load(logp_ptr + row, mask=live, other=0.0)
        entropy = tl.load(entropy_ptr + row, mask=live, other=0.0)
        if old_ptr is None:
            old = logp
        term, _, low, high, ratio, ratio_less_1 = row_terms(
            logp, entropy, old, ref, advantage, factor, a, b, c, d, beta, entropy_coef, OBJECTIVE, KL, HAS_ENTROPY
        )
        weight_sum += weight
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
    lowest_ratio, highest_ratio = tl.min(smallest, 0), tl.max(largest, 0)
    none = highest_ratio < lowest_ratio  # no informative row
    total = tl.sum(live_sum, 0)
    divisor = tl.where(total == 0, 1.0, total)
    whole = tl.sum(weight_sum, 0)
    share = tl.where(total == 0, 0.0, 1.0)
    tl.store(out_ptr, tl.sum(loss_sum, 0))
    tl.store(out_ptr + 1, share * tl.sum(low_sum, 0) / divisor)
    tl.store(out_ptr + 2, share * tl.sum(high_sum, 0) / divisor)
    tl.store(out_ptr + 3, 1 + share * tl.sum(ratio_sum, 0) / divisor)
    tl.store(out_ptr + 4, tl.where(none, 1.0, lowest_ratio))
    tl.store(out_ptr + 5, tl.where(none, 1.0, highest_ratio))
    tl.store(out_ptr + 6, share * tl.sum(entropy_sum, 0) / divisor)
    tl.store(out_ptr + 7, tl.where(whole == 0, 0.0, total / tl.where(whole == 0, 1.0, whole)))
    tl.store(out_ptr + 8, share * tl.sum(kl_sum, 0) / divisor)
