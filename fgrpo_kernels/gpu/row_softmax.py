"""One row of logits through one program: its softmax statistics, and the gradient of a loss in it.

A tile is `[PARTS, THREADS, VECTOR]` neighbouring columns: VECTOR of them are one 16-byte access of a thread, THREADS is
the number of threads of the program. Each thread keeps its own running statistics and reduces over the two other axes,
so a warp meets no barrier and no other thread until its row is read.

A row's tiles are of two kinds. *Plain* tiles have no missing column and not the target: nearly all are, and they cost
no mask. The last tile and the target's are special. `docs/kernels.md` derives the formulas.
"""

from __future__ import annotations

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import LN_2, LOG2_E, exp, expm1, log1p

# Stands for -inf where it would be multiplied by 0.
LOWEST = tl.constexpr(-1e30)


@jit
def row_offset(row: tl.tensor, T: tl.tensor, step_b: tl.tensor, step_t: tl.tensor, unit: tl.tensor) -> tl.tensor:
    """int64 offset of row `b * T + t` in a tensor with two strided leading dimensions; see `Rows`."""
    return ((row // T) * step_b + (row % T) * step_t) * unit


@jit
def row_statistics(
    row_ptr: tl.tensor,
    target: tl.tensor,
    vocab: tl.tensor,
    inv_temperature: tl.tensor,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> tl.tensor:
    """`(peak, log_sum, logp, entropy)` of `softmax(row / temperature)`.

    `peak` is the highest logit, before the temperature; `log_sum` the log of the sum of all
    `exp((logit - peak) / temperature)`. A target outside the vocabulary makes logp NaN.
    """
    inside = (target >= 0) & (target < vocab)
    target_logit = tl.load(row_ptr + target, mask=inside, other=float("nan")).to(tl.float32)
    peak, others, dot = scan_row(row_ptr, target, target_logit, vocab, inv_temperature, PARTS, THREADS, VECTOR)
    shifted = (target_logit - peak) * inv_temperature
    log_sum = log1p(others + expm1(shifted))
    at_target = exp(shifted)
    entropy = log_sum - (dot + tl.maximum(shifted, LOWEST) * at_target) / (others + at_target)
    return peak, log_sum, shifted - log_sum, entropy


@jit
def scan_row(
    row_ptr: tl.tensor,
    target: tl.tensor,
    target_logit: tl.tensor,
    vocab: tl.tensor,
    inv_temperature: tl.tensor,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> tl.tensor:
    """`(peak, others, dot)`: the highest logit, the target's included; and over all columns but the target the sums
    of `e^s` and of `e^s * s`, where `s = (logit - peak) / temperature`. A row of nothing but -inf has peak 0."""
    TILE: tl.constexpr = PARTS * THREADS * VECTOR
    offsets = _tile_offsets(PARTS, THREADS, VECTOR)
    scale = inv_temperature * LOG2_E
    last = (vocab - 1) // TILE
    home = tl.minimum(tl.maximum(target, 0), vocab - 1) // TILE

    highest = tl.full([THREADS], float("-inf"), tl.float32)
    total = tl.zeros([THREADS], tl.float32)
    dot = tl.zeros([THREADS], tl.float32)
    for k in range(0, last - (home < last).to(tl.int32)):
        tile = k + (k >= home).to(tl.int32)
        x = tl.load(row_ptr + (tile * TILE + offsets), eviction_policy="evict_last").to(tl.float32)
        highest, total, dot = _add_tile(x, highest, total, dot, scale)
    for k in range(0, 2):
        column = tl.where(k == 0, last, home) * TILE + offsets
        exists = (column < vocab) & ((k == 0) | (home < last))
        x = tl.load(row_ptr + column, mask=exists, other=float("-inf")).to(tl.float32)
        # The sums leave the target out: next to its 1 when it leads, the others' digits would be lost.
        x = tl.where(column == target, float("-inf"), x)
        highest, total, dot = _add_tile(x, highest, total, dot, scale)

    peak = _finite(tl.maximum(tl.max(highest, 0), target_logit))
    drop = tl.maximum(highest - peak, LOWEST)
    keep = tl.exp2(drop * scale)
    return peak, tl.sum(total * keep, 0), tl.sum(keep * (dot + total * drop), 0) * inv_temperature


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
    HAS_ENTROPY: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Write the gradient of a loss with slopes in this row's logp and entropy. May overwrite the row itself."""
    factor = -(slope + entropy_slope * entropy) * inv_temperature if HAS_ENTROPY else -slope * inv_temperature
    log_factor = -entropy_slope * LN_2 * inv_temperature
    at_target = -slope * expm1(logp)
    if HAS_ENTROPY:
        at_target -= entropy_slope * exp(logp) * (tl.maximum(logp, LOWEST) + entropy)
    at_target *= inv_temperature
    write_row(
        row_ptr, grad_ptr, target, vocab, columns, peak, inv_temperature * LOG2_E, log_sum * LOG2_E,
        factor, log_factor, at_target, HAS_ENTROPY, PARTS, THREADS, VECTOR,
    )  # fmt: skip


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
    HAS_LOG: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Write `2^y * (factor + log_factor * y)` with `y = (logit - peak) * scale - shift`, and `at_target` at the target;
    0 from column `vocab` on.

    The tiles come in the opposite order of `scan_row`, so that what was read last is still in the nearest cache.
    """
    TILE: tl.constexpr = PARTS * THREADS * VECTOR
    offsets = _tile_offsets(PARTS, THREADS, VECTOR)
    last = (vocab - 1) // TILE
    home = tl.minimum(tl.maximum(target, 0), vocab - 1) // TILE

    for k in range(0, 2):
        column = tl.where(k == 0, last, home) * TILE + offsets
        wanted = (k == 0) | (home < last)
        x = tl.load(row_ptr + column, mask=(column < vocab) & wanted, other=float("-inf")).to(tl.float32)
        grad = _tile_gradient(x, peak, scale, shift, factor, log_factor, HAS_LOG)
        grad = tl.where(column == target, at_target, grad)
        tl.store(grad_ptr + column, grad.to(grad_ptr.dtype.element_ty), mask=(column < columns) & wanted)
    num_plain = last - (home < last).to(tl.int32)
    for i in range(0, num_plain):
        k = num_plain - 1 - i
        where = (k + (k >= home).to(tl.int32)) * TILE + offsets
        x = tl.load(row_ptr + where, eviction_policy="evict_first").to(tl.float32)
        grad = _tile_gradient(x, peak, scale, shift, factor, log_factor, HAS_LOG)
        tl.store(grad_ptr + where, grad.to(grad_ptr.dtype.element_ty), cache_modifier=".cs")
    _write_zeros(grad_ptr, (last + 1) * TILE, columns, PARTS, THREADS, VECTOR)


@jit
def write_zero_row(
    grad_ptr: tl.tensor, columns: tl.tensor, PARTS: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr
) -> None:
    """The gradient of a row that does not count."""
    _write_zeros(grad_ptr, 0, columns, PARTS, THREADS, VECTOR)


@jit
def _write_zeros(
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
        column = k * TILE + _tile_offsets(PARTS, THREADS, VECTOR)
        tl.store(grad_ptr + column, zeros, mask=column < columns, cache_modifier=".cs")


@jit
def _tile_offsets(PARTS: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr) -> tl.tensor:
    """`[PARTS, THREADS, VECTOR]` consecutive numbers from 0."""
    part = tl.arange(0, PARTS)[:, None, None] * (THREADS * VECTOR)
    return part + tl.arange(0, THREADS)[None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, :]


@jit
def _add_tile(x: tl.tensor, highest: tl.tensor, total: tl.tensor, dot: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """Each thread's running maximum, sum of exponentials, and sum of exponential times logit, the latter two relative
    to the maximum. `scale` is `log2(e) / temperature`."""
    new_highest = tl.maximum(highest, tl.max(tl.max(x, 2), 0))
    base = _finite(new_highest)
    drop = tl.maximum(highest - base, LOWEST)
    keep = tl.exp2(drop * scale)
    shifted = x - base[None, :, None]
    exps = tl.exp2(shifted * scale)
    dot = keep * (dot + total * drop) + tl.sum(tl.sum(exps * tl.maximum(shifted, LOWEST), 2), 0)
    total = keep * total + tl.sum(tl.sum(exps, 2), 0)
    return new_highest, total, dot


@jit
def _tile_gradient(
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


@jit
def _finite(peak: tl.tensor) -> tl.tensor:
    """A maximum to subtract: 0 where nothing but -inf was seen."""
    return tl.where(peak == float("-inf"), 0.0, peak)
