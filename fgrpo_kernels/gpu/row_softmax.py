"""One row of logits through one program: its softmax statistics. `row_gradient` writes the gradient of a loss in it.

A tile is `[PARTS, THREADS, VECTOR]` neighbouring columns: VECTOR of them are one 16-byte access of a thread, THREADS is
the number of threads of the program. Each thread keeps its own running statistics and reduces over the two other axes,
so a warp meets no barrier and no other thread until its row is read.

A row's tiles are of two kinds. *Plain* tiles have no missing column and not the target: nearly all are, and they cost
no mask. The last tile and the target's are special. `docs/kernels.md` derives the formulas.
"""

from __future__ import annotations

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import LOG2_E, exp, expm1, log1p

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
    held: tl.tensor,
    AGAIN: tl.constexpr,
    STAGES: tl.constexpr,
    HOLD: tl.constexpr,
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
    peak, others, dot = scan_row(
        row_ptr, target, target_logit, vocab, inv_temperature, held, AGAIN, STAGES, HOLD, PARTS, THREADS, VECTOR
    )  # fmt: skip
    log_sum, logp, entropy = finish_row(peak, others, dot, target_logit, inv_temperature)
    return peak, log_sum, logp, entropy


@jit
def finish_row(
    peak: tl.tensor, others: tl.tensor, dot: tl.tensor, target_logit: tl.tensor, inv_temperature: tl.tensor
) -> tl.tensor:
    """`(log_sum, logp, entropy)` from what `scan_row` found."""
    shifted = (target_logit - peak) * inv_temperature
    log_sum = log1p(others + expm1(shifted))
    at_target = exp(shifted)
    entropy = log_sum - (dot + tl.maximum(shifted, LOWEST) * at_target) / (others + at_target)
    return log_sum, shifted - log_sum, entropy


@jit
def scan_row(
    row_ptr: tl.tensor,
    target: tl.tensor,
    target_logit: tl.tensor,
    vocab: tl.tensor,
    inv_temperature: tl.tensor,
    held: tl.tensor,
    AGAIN: tl.constexpr,
    STAGES: tl.constexpr,
    HOLD: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> tl.tensor:
    """`(peak, others, dot)`: the highest logit, the target's included; and over all columns but the target the sums
    of `e^s` and of `e^s * s`, where `s = (logit - peak) / temperature`. A row of nothing but -inf has peak 0.

    The first HOLD plain tiles have been read by `hold_tiles`.
    """
    TILE: tl.constexpr = PARTS * THREADS * VECTOR
    offsets = tile_offsets(PARTS, THREADS, VECTOR)
    scale = inv_temperature * LOG2_E
    last = (vocab - 1) // TILE
    home = tl.minimum(tl.maximum(target, 0), vocab - 1) // TILE

    highest = tl.full([THREADS], float("-inf"), tl.float32)
    total = tl.zeros([THREADS], tl.float32)
    dot = tl.zeros([THREADS], tl.float32)
    for k in tl.static_range(HOLD):
        highest, total, dot = add_tile(held[k].to(tl.float32), highest, total, dot, scale)
    for k in tl.range(HOLD, last - (home < last).to(tl.int32), num_stages=STAGES):
        tile = k + (k >= home).to(tl.int32)
        x = tl.load(row_ptr + (tile * TILE + offsets), eviction_policy=AGAIN).to(tl.float32)
        highest, total, dot = add_tile(x, highest, total, dot, scale)
    highest, total, dot = add_special_tiles(
        row_ptr, target, vocab, highest, total, dot, scale, PARTS, THREADS, VECTOR
    )  # fmt: skip
    return merge_threads(highest, total, dot, target_logit, inv_temperature)


@jit
def add_special_tiles(
    row_ptr: tl.tensor,
    target: tl.tensor,
    vocab: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    dot: tl.tensor,
    scale: tl.tensor,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> tl.tensor:
    """`add_tile` of the last tile and the target's."""
    TILE: tl.constexpr = PARTS * THREADS * VECTOR
    last = (vocab - 1) // TILE
    home = tl.minimum(tl.maximum(target, 0), vocab - 1) // TILE
    for k in range(0, 2):
        column = tl.where(k == 0, last, home) * TILE + tile_offsets(PARTS, THREADS, VECTOR)
        exists = (column < vocab) & ((k == 0) | (home < last))
        x = tl.load(row_ptr + column, mask=exists, other=float("-inf")).to(tl.float32)
        # The sums leave the target out: next to its 1 when it leads, the others' digits would be lost.
        x = tl.where(column == target, float("-inf"), x)
        highest, total, dot = add_tile(x, highest, total, dot, scale)
    return highest, total, dot


@jit
def hold_tiles(
    row_ptr: tl.tensor,
    target: tl.tensor,
    vocab: tl.tensor,
    HOLD: tl.constexpr,
    PARTS: tl.constexpr,
    THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
) -> tl.tensor:
    """The first HOLD plain tiles as they are in memory; -inf where there are fewer."""
    TILE: tl.constexpr = PARTS * THREADS * VECTOR
    last = (vocab - 1) // TILE
    home = tl.minimum(tl.maximum(target, 0), vocab - 1) // TILE
    num_plain = last - (home < last).to(tl.int32)
    held = ()
    for k in tl.static_range(HOLD):
        where = (k + (k >= home).to(tl.int32)) * TILE + tile_offsets(PARTS, THREADS, VECTOR)
        x = tl.load(row_ptr + where, mask=(where >= 0) & (num_plain > k), other=float("-inf"))
        held = held + (x,)  # type: ignore[assignment]  # noqa: RUF005  (Triton has no other way)
    return held


@jit
def merge_threads(
    highest: tl.tensor, total: tl.tensor, dot: tl.tensor, target_logit: tl.tensor, inv_temperature: tl.tensor
) -> tl.tensor:
    """What `scan_row` returns, from each thread's own statistics."""
    scale = inv_temperature * LOG2_E
    peak = _finite(tl.maximum(tl.max(highest, 0), target_logit))
    drop = tl.maximum(highest - peak, LOWEST)
    keep = tl.exp2(drop * scale)
    return peak, tl.sum(total * keep, 0), tl.sum(keep * (dot + total * drop), 0) * inv_temperature


@jit
def tile_offsets(PARTS: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr) -> tl.tensor:
    """`[PARTS, THREADS, VECTOR]` consecutive numbers from 0."""
    part = tl.arange(0, PARTS)[:, None, None] * (THREADS * VECTOR)
    return part + tl.arange(0, THREADS)[None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, :]


@jit
def add_tile(x: tl.tensor, highest: tl.tensor, total: tl.tensor, dot: tl.tensor, scale: tl.tensor) -> tl.tensor:
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
def _finite(peak: tl.tensor) -> tl.tensor:
    """A maximum to subtract: 0 where nothing but -inf was seen."""
    return tl.where(peak == float("-inf"), 0.0, peak)
