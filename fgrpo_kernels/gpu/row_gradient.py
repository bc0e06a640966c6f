"""One row of logits through one program, once its softmax statistics are known: the gradient of a loss in it.

Tiles are those of `row_softmax`.
"""

from __future__ import annotations

from fgrpo_kernels.gpu.row_softmax import LOWEST, tile_offsets
from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import LN_2, LOG2_E, exp, expm1


@jit
def write_row_gradient(
    row_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    target: tl.tensor,
    vocab: tl.tensor,
    columns: tl.tensor,
    peak: tl.tensor,
    log_sum: tl.tensor,
    logp: tl.tensor,
    entropy: tl.tensor,
    slope: tl.tensor,
    entropy_slope: tl.tensor,
    inv_temperature: tl.tensor,
    held: tl.tensor,
    HAS_ENTROPY: tl.constexpr,
    STAGES: tl.constexpr,
    HOLD: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Write the gradient of a loss with slopes in this row's logp and entropy. May overwrite the row itself."""
    factor, log_factor, at_target = row_factors(logp, entropy, slope, entropy_slope, inv_temperature, HAS_ENTROPY)
    write_row(
        row_ptr, grad_ptr, target, vocab, columns, peak, inv_temperature * LOG2_E, log_sum * LOG2_E,
        factor, log_factor, at_target, held, HAS_ENTROPY, STAGES, HOLD, PARTS, THREADS, VECTOR,
    )  # fmt: skip


@jit
def row_factors(
    logp: tl.tensor,
    entropy: tl.tensor,
    slope: tl.tensor,
    entropy_slope: tl.tensor,
    inv_temperature: tl.tensor,
    HAS_ENTROPY: tl.constexpr,
) -> tl.tensor:
    """`(factor, log_factor, at_target)` of `write_row` for slopes in logp and entropy."""
    factor = -(slope + entropy_slope * entropy) * inv_temperature if HAS_ENTROPY else -slope * inv_temperature
    log_factor = -entropy_slope * LN_2 * inv_temperature
    at_target = -slope * expm1(logp)
    if HAS_ENTROPY:
        at_target -= entropy_slope * exp(logp) * (tl.maximum(logp, LOWEST) + entropy)
    return factor, log_factor, at_target * inv_temperature


@jit
def write_row(
    row_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    target: tl.tensor,
    vocab: tl.tensor,
    columns: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    factor: tl.tensor,
    log_factor: tl.tensor,
    at_target: tl.tensor,
    held: tl.tensor,
    HAS_LOG: tl.constexpr,
    STAGES: tl.constexpr,
    HOLD: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Write `2^y * (factor + log_factor * y)` with `y = (logit - peak) * scale - shift`, and `at_target` at the target;
    0 from column `vocab` on.

    The tiles come in the opposite order of `scan_row`, so that what was read last is still in the nearest cache, and
    last the HOLD tiles that never left the registers.
    """
    TILE: tl.constexpr = PARTS * THREADS * VECTOR
    offsets = tile_offsets(PARTS, THREADS, VECTOR)
    last = (vocab - 1) // TILE
    home = tl.minimum(tl.maximum(target, 0), vocab - 1) // TILE

    write_special_tiles(
        row_ptr, grad_ptr, target, vocab, columns, peak, scale, shift, factor, log_factor, at_target,
        HAS_LOG, PARTS, THREADS, VECTOR,
    )  # fmt: skip
    num_plain = last - (home < last).to(tl.int32)
    for i in tl.range(0, num_plain - HOLD, num_stages=STAGES):
        k = num_plain - 1 - i
        where = (k + (k >= home).to(tl.int32)) * TILE + offsets
        x = tl.load(row_ptr + where, eviction_policy="evict_first").to(tl.float32)
        grad = tile_gradient(x, peak, scale, shift, factor, log_factor, HAS_LOG)
        tl.store(grad_ptr + where, grad.to(grad_ptr.dtype.element_ty), cache_modifier=".cs")
    for k in tl.static_range(HOLD):
        where = (k + (k >= home).to(tl.int32)) * TILE + offsets
        grad = tile_gradient(held[k].to(tl.float32), peak, scale, shift, factor, log_factor, HAS_LOG)
        there = (where >= 0) & (num_plain > k)
        tl.store(grad_ptr + where, grad.to(grad_ptr.dtype.element_ty), mask=there, cache_modifier=".cs")
    write_zeros(grad_ptr, (last + 1) * TILE, columns, PARTS, THREADS, VECTOR)


@jit
def write_special_tiles(
    row_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    target: tl.tensor,
    vocab: tl.tensor,
    columns: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    factor: tl.tensor,
    log_factor: tl.tensor,
    at_target: tl.tensor,
    HAS_LOG: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """The part of `write_row` that takes the last tile and the target's."""
    TILE: tl.constexpr = PARTS * THREADS * VECTOR
    last = (vocab - 1) // TILE
    home = tl.minimum(tl.maximum(target, 0), vocab - 1) // TILE
    for k in range(0, 2):
        column = tl.where(k == 0, last, home) * TILE + tile_offsets(PARTS, THREADS, VECTOR)
        here = (k == 0) | (home < last)
        x = tl.load(row_ptr + column, mask=(column < vocab) & here, other=float("-inf")).to(tl.float32)
        grad = tile_gradient(x, peak, scale, shift, factor, log_factor, HAS_LOG)
        grad = tl.where(column == target, at_target, grad)
        tl.store(grad_ptr + column, grad.to(grad_ptr.dtype.element_ty), mask=(column < columns) & here)


@jit
def write_zero_row(
    grad_ptr: tl.tensor, columns: tl.tensor, PARTS: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr
) -> None:
    """The gradient of a row that does not count."""
    write_zeros(grad_ptr, 0, columns, PARTS, THREADS, VECTOR)


@jit
def write_zeros(
    grad_ptr: tl.tensor,
    start: tl.tensor,
    columns: tl.tensor,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    TILE: tl.constexpr = PARTS * THREADS * VECTOR
    zeros = tl.zeros([PARTS, THREADS, VECTOR], grad_ptr.dtype.element_ty)
    for k in range(start // TILE, tl.cdiv(columns, TILE)):
        column = k * TILE + tile_offsets(PARTS, THREADS, VECTOR)
        tl.store(grad_ptr + column, zeros, mask=column < columns, cache_modifier=".cs")


@jit
def tile_gradient(
    x: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    factor: tl.tensor,
    log_factor: tl.tensor,
    HAS_LOG: tl.constexpr,
) -> tl.tensor:
    """`p * (factor + log_factor * log2 p)` with `p` the probabilities."""
    log2_p = (x - peak) * scale - shift
    if HAS_LOG:
        return tl.exp2(log2_p) * (factor + log_factor * tl.maximum(log2_p, LOWEST))
    return tl.exp2(log2_p) * factor
