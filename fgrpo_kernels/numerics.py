"""Device functions that keep their digits where the textbook form cancels. For scalars of a row, not for its columns.

Each is right to a few units in the last place of float32, whatever the target's own `log` and `exp` do near 1 and 0.
"""

from __future__ import annotations

from fgrpo_kernels.jit import jit, tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@jit
def exp(x: tl.tensor) -> tl.tensor:
    """`e^x`. The rounding of `x * log2(e)`, which would cost `|x|` units in the last place, is made up for."""
    high = x * 1.4426950408889634
    low = tl.fma(x, 1.4426950408889634, -high) + x * 1.925963033500952e-08
    power = tl.exp2(high)
    # exp2(high + low) = exp2(high) * (1 + low * ln 2); where the power is 0 or inf, low may be NaN or useless.
    corrected = power + power * (low * 0.6931471805599453)
    return tl.where((power == 0.0) | (power == float("inf")), power, corrected)


@jit
def expm1_minus_x(x: tl.tensor) -> tl.tensor:
    """`e^x - 1 - x`: the k3 estimator. Never negative, and right for the smallest `x`."""
    series = 1 / 362880 + x * (1 / 3628800)
    series = 1 / 40320 + x * series
    series = 1 / 5040 + x * series
    series = 1 / 720 + x * series
    series = 1 / 120 + x * series
    series = 1 / 24 + x * series
    series = 1 / 6 + x * series
    series = 1 / 2 + x * series
    return tl.where(tl.abs(x) < 0.7, x * x * series, exp(x) - 1 - x)


@jit
def expm1(x: tl.tensor) -> tl.tensor:
    """`e^x - 1`."""
    return tl.where(tl.abs(x) < 0.7, x + expm1_minus_x(x), exp(x) - 1)


@jit
def log1p(x: tl.tensor) -> tl.tensor:
    """`log(1 + x)` for `x >= 0`: `2 atanh(x / (2 + x))` as a series for small `x`."""
    s = x / (2 + x)
    s2 = s * s
    series = 1 / 11 + s2 * (1 / 13)
    series = 1 / 9 + s2 * series
    series = 1 / 7 + s2 * series
    series = 1 / 5 + s2 * series
    series = 1 / 3 + s2 * series
    return tl.where(x < 0.5, 2 * s + 2 * s * s2 * series, tl.log(1 + x))
