"""Device code of the delta codec, value by value: reading a delta, random numbers, and the codecs without blocks.

The results must equal the C++ bit for bit, so every launch passes `ONE_ROUNDING_EACH`: a product and a sum that became
one fused operation would round once instead of twice. Nothing flushes subnormals.
"""

from __future__ import annotations

from fgrpo_kernels.jit import jit, tl

ONE_ROUNDING_EACH = {"enable_fp_fusion": False}  # an option of the launch

# In `fault_ptr`: no value that cannot be encoded was found.
NO_FAULT = tl.constexpr(2**63 - 1)
# The bits of 2^127. Those of larger numbers, of infinity and of NaN are greater integers.
LARGEST_MAGNITUDE = tl.constexpr(0x7F000000)


@jit
def load(ptr: tl.tensor, first: tl.tensor, at: tl.tensor, left: tl.tensor, WHOLE: tl.constexpr) -> tl.tensor:
    """Elements `first + at`, 0 from `first + left` on. A tile that is WHOLE takes no mask: masks narrow accesses."""
    return tl.load(ptr + first + at) if WHOLE else tl.load(ptr + first + at, mask=at < left, other=0)


@jit
def store(
    ptr: tl.tensor, first: tl.tensor, at: tl.tensor, left: tl.tensor, values: tl.tensor, WHOLE: tl.constexpr
) -> None:
    if WHOLE:
        tl.store(ptr + first + at, values)
    else:
        tl.store(ptr + first + at, values, mask=at < left)


@jit
def load_delta(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    first: tl.tensor,
    at: tl.tensor,
    left: tl.tensor,
    WHOLE: tl.constexpr,
) -> tl.tensor:
    """`new - base + residual` in float32, added in this order; 0 from `first + left` on."""
    delta = load(new_ptr, first, at, left, WHOLE).to(tl.float32)
    if base_ptr is not None:
        delta = delta - load(base_ptr, first, at, left, WHOLE).to(tl.float32)
    if residual_ptr is not None:
        delta = delta + load(residual_ptr, first, at, left, WHOLE)
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
def philox(
    seed_low: tl.tensor, seed_high: tl.tensor, counter_low: tl.tensor, counter_high: tl.tensor
) -> tuple[tl.tensor, ...]:
    """The four words of Philox4x32-10 (Salmon et al. 2011); arguments are int32, the halves of 64 bits.

    One 64-bit multiplication gives both halves of a product, for which `tl.philox` takes two.
    """
    c0 = counter_low.to(tl.uint32, bitcast=True)
    c1 = counter_high.to(tl.uint32, bitcast=True)
    c2 = c0 * 0
    c3 = c0 * 0
    k0 = seed_low.to(tl.uint32, bitcast=True)
    k1 = seed_high.to(tl.uint32, bitcast=True)
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
def random_bits(seed_low: tl.tensor, seed_high: tl.tensor, first: tl.tensor, quad: tl.tensor) -> tl.tensor:
    """uint16 for the values `first + 4 * quad` and the three after each: `[R, C]` quads to `[R, 4 * C]` numbers.

    `first` is a multiple of a power of two that `4 * quad` stays below, so their sum carries nothing upwards. A counter
    gives two quads their numbers, and is computed for each: what a thread reads at once is one quad.
    """
    counter = first // 8
    low = quad // 2 + counter.to(tl.int32)
    word0, word1, word2, word3 = philox(seed_low, seed_high, low, quad * 0 + (counter >> 32).to(tl.int32))
    second = quad % 2 == 1
    words = tl.join(tl.where(second, word2, word0), tl.where(second, word3, word1))
    halves = tl.join(words & 0xFFFF, words >> 16)  # [R, C, 2, 2] in the order of the values
    return tl.reshape(halves, [quad.shape[0], 4 * quad.shape[1]]).to(tl.uint16)


@jit
def float32_tile(
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
    delta = load_delta(new_ptr, base_ptr, residual_ptr, first, at, left, WHOLE)
    note_faults(fault_ptr, first + row * COLUMNS, tl.max(magnitude(delta), 1))
    if out_ptr is not None:
        store(out_ptr, first, at, left, delta, WHOLE)


@jit(do_not_specialize=["P"])
def float32_kernel(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    P: tl.tensor,
    out_ptr: tl.tensor,
    fault_ptr: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """The delta as it is: looked through for values that cannot be encoded, and written where there is an `out_ptr`."""
    first = tl.program_id(0).to(tl.int64) * (ROWS * COLUMNS)
    left = P - first
    if left >= ROWS * COLUMNS:
        float32_tile(
            new_ptr, base_ptr, residual_ptr, out_ptr, fault_ptr, first, ROWS * COLUMNS, ROWS, COLUMNS, True
        )  # fmt: skip
    else:
        float32_tile(
            new_ptr, base_ptr, residual_ptr, out_ptr, fault_ptr, first, left.to(tl.int32), ROWS, COLUMNS, False
        )


@jit
def bfloat16_tile(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    halves_ptr: tl.tensor,
    fault_ptr: tl.tensor,
    first: tl.tensor,
    left: tl.tensor,
    seed_low: tl.tensor,
    seed_high: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:
    row = tl.arange(0, ROWS)
    at = row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    delta = load_delta(new_ptr, base_ptr, residual_ptr, first, at, left, WHOLE)
    bits = delta.to(tl.int32, bitcast=True)
    if STOCHASTIC:
        quad = row[:, None] * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)[None, :]
        below = random_bits(seed_low, seed_high, first, quad).to(tl.int32)
    else:
        below = 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    # In absolute value at most 2^127, so the sum overflows into neither the sign nor infinity.
    rounded = (bits + below) >> 16
    store(halves_ptr, first, at, left, rounded.to(tl.int16), WHOLE)
    if residual_ptr is None:
        note_faults(fault_ptr, first + row * COLUMNS, tl.max(magnitude(delta), 1))
    else:  # `float32_kernel` has seen every value
        if tl.load(fault_ptr) == NO_FAULT:
            decoded = (rounded << 16).to(tl.float32, bitcast=True)
            store(residual_ptr, first, at, left, delta - decoded, WHOLE)


@jit(do_not_specialize=["P", "seed_low", "seed_high"])
def bfloat16_kernel(
    new_ptr: tl.tensor,
    base_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    P: tl.tensor,
    halves_ptr: tl.tensor,
    fault_ptr: tl.tensor,
    seed_low: tl.tensor,
    seed_high: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
) -> None:
    """The delta as bfloat16. With a residual: its update too, unless `fault` says that a value is unfit."""
    first = tl.program_id(0).to(tl.int64) * (ROWS * COLUMNS)
    left = P - first
    if left >= ROWS * COLUMNS:
        bfloat16_tile(
            new_ptr, base_ptr, residual_ptr, halves_ptr, fault_ptr, first, ROWS * COLUMNS, seed_low, seed_high,
            ROWS, COLUMNS, STOCHASTIC, True,
        )  # fmt: skip
    else:
        bfloat16_tile(
            new_ptr, base_ptr, residual_ptr, halves_ptr, fault_ptr, first, left.to(tl.int32), seed_low, seed_high,
            ROWS, COLUMNS, STOCHASTIC, False,
        )  # fmt: skip
