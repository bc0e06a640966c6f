"""Device code of the delta codec: the arithmetic of `csrc/quantise.h`, operation by operation.

The results must equal the C++ bit for bit, so every launch passes `ONE_ROUNDING_EACH`: a product and a sum that became
one fused operation would round once instead of twice. Divisions are `div_rn`; nothing flushes subnormals.

A program takes ROWS blocks of BLOCK values. Byte i of a block holds the codes i, i + BYTES, ...: SLOTS of them, so
values are taken as SLOTS tiles `[ROWS, BYTES]`, and packing them moves nothing between threads.
"""

from __future__ import annotations

from fgrpo_kernels.jit import jit, tl

ONE_ROUNDING_EACH = {"enable_fp_fusion": False}  # an option of the launch

# In `fault_ptr`: no value that cannot be encoded was found.
NO_FAULT = tl.constexpr(2**63 - 1)
# The bits of 2^127. Those of larger numbers, of infinity and of NaN are greater integers.
LARGEST_MAGNITUDE = tl.constexpr(0x7F000000)
# 1.5 * 2^23: added to a number below 2^22, it leaves the nearest integer, ties to even, in the low bits.
ROUNDER = tl.constexpr(12582912.0)


@jit
def load(ptr: tl.tensor, at: tl.tensor, left: tl.tensor, WHOLE: tl.constexpr) -> tl.tensor:
    """float32 values, 0 from `left` on. A tile that is WHOLE takes no mask, which would narrow the access."""
    if WHOLE:
        values = tl.load(ptr + at)
    else:
        values = tl.load(ptr + at, mask=at < left, other=0)
    return values.to(tl.float32)


@jit
def store(ptr: tl.tensor, at: tl.tensor, left: tl.tensor, values: tl.tensor, WHOLE: tl.constexpr) -> None:
    if WHOLE:
        tl.store(ptr + at, values)
    else:
        tl.store(ptr + at, values, mask=at < left)


@jit
def load_delta(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    at: tl.tensor,
    left: tl.tensor,
    WHOLE: tl.constexpr,
) -> tl.tensor:
    delta = load(new_ptr, at, left, WHOLE)
    if base_ptr is not None:
        delta = delta - load(base_ptr, at, left, WHOLE)
    if residual_ptr is not None:
        delta = delta + load(residual_ptr, at, left, WHOLE)
    return delta


@jit
def magnitude(values: tl.tensor) -> tl.tensor:
    """The bits of |values|, which compare as the numbers do."""
    return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@jit
def note_faults(fault_ptr: tl.tensor, start: tl.tensor, peak: tl.tensor) -> None:
    """Lower `fault` to the first of the rows' starts whose peak cannot be encoded. Rows hold at most 1024 values."""
    tl.atomic_min(fault_ptr + start * 0, start, mask=peak > LARGEST_MAGNITUDE, sem="relaxed")


@jit
def philox(seed: tl.tensor, counter_low: tl.tensor, counter_high: tl.tensor) -> tuple[tl.tensor, ...]:
    """The four words of Philox4x32-10 (Salmon et al. 2011) for `counter_high * 2^32 + counter_low`.

    One 64-bit multiplication gives both halves of a product, for which `tl.philox` takes two.
    """
    c0 = counter_low.to(tl.uint32, bitcast=True)
    c1 = counter_high.to(tl.uint32, bitcast=True)
    c2 = c0 * 0
    c3 = c0 * 0
    k0 = seed.to(tl.uint32)
    k1 = (seed.to(tl.int64) >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product1.to(tl.uint32)
        c3 = product0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@jit
def uniform(seed: tl.tensor, first: tl.tensor, quad: tl.tensor) -> tl.tensor:
    """Numbers in [0, 1) for the values `first + 4 * quad` and the three after each: `[R, C]` quads to `[R, 4 * C]`.

    `first` is a multiple of a power of two that `4 * quad` stays below, so their sum carries nothing upwards.
    """
    counter = first // 4
    low = quad + counter.to(tl.int32)
    word0, word1, word2, word3 = philox(seed, low, quad * 0 + (counter >> 32).to(tl.int32))
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))  # [R, C, 2, 2] in the order of the values
    words = tl.reshape(words, [quad.shape[0], 4 * quad.shape[1]])
    return (words >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@jit
def scale_bits_for(peak: tl.tensor, LARGEST_CODE: tl.constexpr) -> tl.tensor:
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
    first: tl.tensor,
    left: tl.tensor,
    seed: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:
    """Pointers are at value `first`, its code and its scale; `left` values remain from there."""
    SLOTS: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = BLOCK // SLOTS
    LARGEST_CODE: tl.constexpr = 2 ** (BITS - 1) - 1
    row = tl.arange(0, ROWS)
    at = row[:, None] * BLOCK + tl.arange(0, BYTES)[None, :]

    deltas = ()
    peak = tl.zeros([ROWS, BYTES], tl.int32)
    for slot in tl.static_range(SLOTS):
        delta = load_delta(new_ptr, base_ptr, residual_ptr, at + slot * BYTES, left, WHOLE)
        peak = tl.maximum(peak, magnitude(delta))
        deltas = deltas + (delta,)
    peak = tl.max(peak, 1)
    if residual_ptr is None:
        note_faults(fault_ptr, first + row * BLOCK, peak)
    else:  # `sum_kernel` has seen every value
        unharmed = tl.load(fault_ptr) == NO_FAULT

    scale_bits = scale_bits_for(peak, LARGEST_CODE)
    scale = widen(scale_bits)
    inverse = tl.where(scale > 0, tl.div_rn(1.0, scale), 0.0)
    packed = tl.zeros([ROWS, BYTES], tl.int32)
    for slot in tl.static_range(SLOTS):
        scaled = deltas[slot] * inverse[:, None]
        if STOCHASTIC:
            quad = row[:, None] * (BLOCK // 4) + slot * (BYTES // 4) + tl.arange(0, BYTES // 4)[None, :]
            shifted = scaled + uniform(seed, first, quad)
            code = (shifted + ROUNDER) - ROUNDER
            code = tl.where(code > shifted, code - 1, code)  # the floor
            # A scaled value may exceed the largest code by a rounding error.
            code = tl.maximum(tl.minimum(code, LARGEST_CODE * 1.0), -LARGEST_CODE * 1.0)
            rounded = code + ROUNDER
        else:
            rounded = scaled + ROUNDER
            code = rounded - ROUNDER
        packed |= (rounded.to(tl.int32, bitcast=True) & (2**BITS - 1)) << (slot * BITS)
        if residual_ptr is not None:
            if unharmed:
                store(residual_ptr, at + slot * BYTES, left, deltas[slot] - code * scale[:, None], WHOLE)

    rows_left = (left + (BLOCK - 1)) // BLOCK
    byte = row[:, None] * BYTES + tl.arange(0, BYTES)[None, :]
    store(codes_ptr, byte, rows_left * BYTES, packed.to(tl.uint8), WHOLE)
    store(scales_ptr, row, rows_left, scale_bits.to(tl.int16), WHOLE)


@jit(do_not_specialize=["P", "seed"])
def encode_kernel(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    P: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    fault_ptr: tl.tensor,
    seed: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
) -> None:
    """Codes and scales of ROWS blocks. With a residual: its update too, unless `fault` says that a value is unfit."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    first = first_row * BLOCK
    new_ptr += first
    if base_ptr is not None:
        base_ptr += first
    if residual_ptr is not None:
        residual_ptr += first
    codes_ptr += first_row * (BLOCK * BITS // 8)
    scales_ptr += first_row
    left = P - first
    if left >= ROWS * BLOCK:
        encode_tile(
            new_ptr, base_ptr, residual_ptr, codes_ptr, scales_ptr, fault_ptr, first, ROWS * BLOCK, seed,
            BITS, BLOCK, ROWS, STOCHASTIC, True,
        )  # fmt: skip
    else:
        encode_tile(
            new_ptr, base_ptr, residual_ptr, codes_ptr, scales_ptr, fault_ptr, first, left.to(tl.int32), seed,
            BITS, BLOCK, ROWS, STOCHASTIC, False,
        )  # fmt: skip


@jit
def sum_tile(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    out_ptr: tl.tensor,
    fault_ptr: tl.tensor,
    first: tl.tensor,
    left: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:
    row = tl.arange(0, ROWS)
    at = row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    delta = load_delta(new_ptr, base_ptr, residual_ptr, at, left, WHOLE)
    note_faults(fault_ptr, first + row * COLUMNS, tl.max(magnitude(delta), 1))
    if out_ptr is not None:
        store(out_ptr, at, left, delta, WHOLE)


@jit(do_not_specialize=["P"])
def sum_kernel(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    P: tl.tensor,
    out_ptr: tl.tensor,
    fault_ptr: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """The delta itself: looked through for values that cannot be encoded, and written where there is an `out_ptr`."""
    first = tl.program_id(0).to(tl.int64) * (ROWS * COLUMNS)
    new_ptr += first
    if base_ptr is not None:
        base_ptr += first
    if residual_ptr is not None:
        residual_ptr += first
    if out_ptr is not None:
        out_ptr += first
    left = P - first
    if left >= ROWS * COLUMNS:
        sum_tile(new_ptr, base_ptr, residual_ptr, out_ptr, fault_ptr, first, ROWS * COLUMNS, ROWS, COLUMNS, True)
    else:
        sum_tile(new_ptr, base_ptr, residual_ptr, out_ptr, fault_ptr, first, left.to(tl.int32), ROWS, COLUMNS, False)


@jit
def decode_tile(
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    out_ptr: tl.tensor,
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
    if WHOLE:
        packed = tl.load(codes_ptr + byte).to(tl.int32)
        scale_bits = tl.load(scales_ptr + row).to(tl.int32)
    else:
        packed = tl.load(codes_ptr + byte, mask=byte < rows_left * BYTES, other=0).to(tl.int32)
        scale_bits = tl.load(scales_ptr + row, mask=row < rows_left, other=0).to(tl.int32)
    scale = widen(scale_bits)
    for slot in tl.static_range(SLOTS):
        code = (packed << (32 - BITS - slot * BITS)) >> (32 - BITS)  # brings its sign along
        at = row[:, None] * BLOCK + slot * BYTES + column[None, :]
        store(out_ptr, at, left, code.to(tl.float32) * scale[:, None], WHOLE)


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
    codes_ptr += first_row * (BLOCK * BITS // 8)
    scales_ptr += first_row
    out_ptr += first_row * BLOCK
    left = P - first_row * BLOCK
    if left >= ROWS * BLOCK:
        decode_tile(codes_ptr, scales_ptr, out_ptr, ROWS * BLOCK, BITS, BLOCK, ROWS, True)
    else:
        decode_tile(codes_ptr, scales_ptr, out_ptr, left.to(tl.int32), BITS, BLOCK, ROWS, False)
