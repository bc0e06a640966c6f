"""Per-token estimates of KL(policy, reference) from the sampled token's log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fgrpo_kernels.jit import jit, tl
from fgrpo_kernels.numerics import expm1, expm1_minus_x
from fgrpo_kernels.objectives.base import MAX_LOG_RATIO

KL = Literal["k1", "k2", "k3", "k3_is"]


def k1(logp_N: Tensor, ref_logp_N: Tensor) -> Tensor:
    """`logp - ref_logp`: unbiased, may be negative."""
    return logp_N - ref_logp_N


def k2(logp_N: Tensor, ref_logp_N: Tensor) -> Tensor:
    """`(logp - ref_logp)^2 / 2`: biased, but its expected gradient is the KL's."""
    return 0.5 * (logp_N - ref_logp_N).square()


def k3(logp_N: Tensor, ref_logp_N: Tensor) -> Tensor:
    """`e^d - 1 - d` with `d = ref_logp - logp`: unbiased and never negative."""
    d_N = ref_logp_N - logp_N
    slope_N = torch.expm1(d_N.detach().clamp(max=MAX_LOG_RATIO))
    # Value and slope are each written in the form that does not cancel for small d. Left to autograd, the slope
    # would be (e^d) - 1, which loses every digit once d falls under the rounding error of 1.
    return slope_N - d_N.detach() + slope_N * (d_N - d_N.detach())


# "k3_is" is k3 times the objective's importance ratio, which the caller multiplies in.
ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "k3_is": k3}


@jit
def device_k1(d: tl.tensor, ratio: tl.tensor, ratio_slope: tl.tensor) -> tl.tensor:
    """Triton form of k1 with `d = ref_logp - logp`: the estimate, its slope in logp, and that through the ratio."""
    return -d, 1.0, 0.0


@jit
def device_k2(d: tl.tensor, ratio: tl.tensor, ratio_slope: tl.tensor) -> tl.tensor:
    """Triton form of k2."""
    return 0.5 * d * d, -d, 0.0


@jit
def device_k3(d: tl.tensor, ratio: tl.tensor, ratio_slope: tl.tensor) -> tl.tensor:
    """Triton form of k3."""
    bounded = tl.minimum(d, 80.0)
    # Past the bound k3 goes on with slope 0 of its exponential, as `k3` above.
    return expm1_minus_x(bounded) - (d - bounded), -expm1(bounded), 0.0


@jit
def device_k3_is(d: tl.tensor, ratio: tl.tensor, ratio_slope: tl.tensor) -> tl.tensor:
    """Triton form of k3 times the ratio."""
    value, slope, _ = device_k3(d, ratio, ratio_slope)
    return ratio * value, ratio * slope, ratio_slope * value


DEVICE_ESTIMATORS = {"k1": device_k1, "k2": device_k2, "k3": device_k3, "k3_is": device_k3_is}
