"""Device code of the delta codec's int8, int4 and int2: the arithmetic of `csrc/quantise.h`, operation by operation.

A program takes ROWS blocks of BLOCK values. Byte i of a block holds the codes i, i + BYTES, ...: SLOTS of them, so
values are taken as SLOTS tiles `[ROWS, BYTES]`, and packing them moves nothing between threads.
"""

from __future__ import annotations

from fgrpo_kernels.codec.gpu_values import (
    NO_FAULT,
    load,
    load_delta,
    magnitude,
    note_faults,
    random_bits,
    store,
)
from fgrpo_kernels.jit import jit, tl

# 1.5 * 2^23: added to a number below 2^22, it leaves the nearest integer, ties to even, in the low bits.
ROUNDER = tl.constexpr(12582912.0)


@jit
def absmax_scale_bits(peak: tl.tensor, LARGEST_CODE: tl.constexpr) -> tl.tensor:
    """The bfloat16 bits of `peak / LARGEST_CODE`, rounded up; 0 where that is not a normal number."""
    quotient = tl.div_rn(peak.to(tl.float32, bitcast=True), LARGEST_CODE * 1.0)
    rounded_up = (quotient.to(tl.int32, bitcast=True) + 0xFFFF) >> 16
    return tl.where(quotient < 1.1754943508222875e-38, 0, rounded_up)  # 2^-126


@jit
def widen(scale_bits: tl.tensor) -> tl.tensor:
    return (scale_bits << 16).to(tl.float32, bitcast=True)


@jit
def encode_tile(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    fault_ptr: tl.tensor,
    first_row: tl.tensor,
    left: tl.tensor,
    seed_low: tl.tensor,
    seed_high: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:
    """`left` values remain from row `first_row` on."""
    SLOTS: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = BLOCK // SLOTS
    LARGEST_CODE: tl.constexpr = 2 ** (BITS - 1) - 1
    first = first_row * BLOCK
    row = tl.arange(0, ROWS)
    at = row[:, None] * BLOCK + tl.arange(0, BYTES)[None, :]

    deltas = ()
    peak = tl.zeros([ROWS, BYTES], tl.int32)
    for slot in tl.static_range(SLOTS):
        delta = load_delta(new_ptr, base_ptr, residual_ptr, first, at + slot * BYTES, left, WHOLE)
        peak = tl.maximum(peak, magnitude(delta))
        deltas = deltas + (delta,)  # type: ignore[assignment]  # noqa: RUF005 - device code has no unpacking
    peak = tl.max(peak, 1)
    if residual_ptr is None:
        note_faults(fault_ptr, first + row * BLOCK, peak)
    else:  # `float32_kernel` has seen every value
        unharmed = tl.load(fault_ptr) == NO_FAULT

    scale_bits = absmax_scale_bits(peak, LARGEST_CODE)
    scale = widen(scale_bits)
    inverse = tl.where(scale > 0, tl.div_rn(1.0, scale), 0.0)
    packed = tl.zeros([ROWS, BYTES], tl.int32)
    for slot in tl.static_range(SLOTS):
        scaled = deltas[slot] * inverse[:, None]
        if STOCHASTIC:
            quad = row[:, None] * (BLOCK // 4) + slot * (BYTES // 4) + tl.arange(0, BYTES // 4)[None, :]
            odd = (random_bits(seed_low, seed_high, first, quad) | 1).to(tl.int16, bitcast=True)
            scaled = scaled + odd.to(tl.float32) * 1.52587890625e-05  # 2^-16
        rounded = scaled + ROUNDER
        code = rounded - ROUNDER
        packed |= (rounded.to(tl.int32, bitcast=True) & (2**BITS - 1)) << (slot * BITS)
        if residual_ptr is not None:  # noqa: SIM102 - decided when it is compiled
            if unharmed:
                store(residual_ptr, first, at + slot * BYTES, left, deltas[slot] - code * scale[:, None], WHOLE)

    rows_left = (left + (BLOCK - 1)) // BLOCK
    byte = row[:, None] * BYTES + tl.arange(0, BYTES)[None, :]
    store(codes_ptr, first_row * BYTES, byte, rows_left * BYTES, packed.to(tl.uint8), WHOLE)
    store(scales_ptr, first_row, row, rows_left, scale_bits.to(tl.int16), WHOLE)


@jit(do_not_specialize=["P", "seed_low", "seed_high"])
def encode_kernel(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    P: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    fault_ptr: tl.tensor,
    seed_low: tl.tensor,
    seed_high: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
) -> None:
    """Codes and scales of ROWS blocks. With a residual: its update too, unless `fault` says that a value is unfit."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    left = P - first_row * BLOCK
    if left >= ROWS * BLOCK:
        encode_tile(
            new_ptr, base_ptr, residual_ptr, codes_ptr, scales_ptr, fault_ptr, first_row, ROWS * BLOCK,
            seed_low, seed_high, BITS, BLOCK, ROWS, STOCHASTIC, True,
        )  # fmt: skip
    else:
        encode_tile(
            new_ptr, base_ptr, residual_ptr, codes_ptr, scales_ptr, fault_ptr, first_row, left.to(tl.int32),
            seed_low, seed_high, BITS, BLOCK, ROWS, STOCHASTIC, False,
        )  # fmt: skip


@jit
def decode_tile(
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    out_ptr: tl.tensor,
    first_row: tl.tensor,
    left: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:
    SLOTS: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = BLOCK // SLOTS
    row = tl.arange(0, ROWS)
    column = tl.arange(0, BYTES)
    rows_left = (left + (BLOCK - 1)) // BLOCK
    byte = row[:, None] * BYTES + column[None, :]
    packed = load(codes_ptr, first_row * BYTES, byte, rows_left * BYTES, WHOLE).to(tl.int32)
    scale = widen(load(scales_ptr, first_row, row, rows_left, WHOLE).to(tl.int32))
    for slot in tl.static_range(SLOTS):
        code = (packed << (32 - BITS - slot * BITS)) >> (32 - BITS)  # brings its sign along
        at = row[:, None] * BLOCK + slot * BYTES + column[None, :]
        store(out_ptr, first_row * BLOCK, at, left, code.to(tl.float32) * scale[:, None], WHOLE)


@jit(do_not_specialize=["P"])
def decode_kernel(
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    out_ptr: tl.tensor,
    P: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """The values of ROWS blocks."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    left = P - first_row * BLOCK
    if left >= ROWS * BLOCK:
        decode_tile(codes_ptr, scales_ptr, out_ptr, first_row, ROWS * BLOCK, BITS, BLOCK, ROWS, True)
    else:
        decode_tile(codes_ptr, scales_ptr, out_ptr, first_row, left.to(tl.int32), BITS, BLOCK, ROWS, False)
