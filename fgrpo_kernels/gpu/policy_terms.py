"""The loss's arithmetic on `[N]` vectors as ops on a GPU: which rows count, loss, metrics, and slopes.

The device form of `fgrpo_kernels.policy_terms`, in a few launches.

N rows   S sequences, or blocks of rows where rows do not depend on each other
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.derivatives import first_derivative_only
from fgrpo_kernels.direct import direct
from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.policy_kernels import NUM_SUMS, finish_kernel, live_rows_kernel, policy_terms_kernel
from fgrpo_kernels.jit import FUSED
from fgrpo_kernels.kl import DEVICE_ESTIMATORS
from fgrpo_kernels.objectives import DEVICE_FUNCTIONS, DEVICE_GATHERS
from fgrpo_kernels.objectives.base import DeviceForm
from fgrpo_kernels.policy_terms import PolicyTerms
from fgrpo_kernels.results import GRPOLoss

METRICS = (
    "clip_ratio/low",
    "clip_ratio/high",
    "ratio/mean",
    "ratio/min",
    "ratio/max",
    "entropy",
    "informative",
    "kl",
)
BLOCK = 512
TERMS_WARPS = 8  # two rows a thread: with more, the running sums would not fit the registers


class Sequences(NamedTuple):
    """Where the rows of each sequence are: `order[starts[s] : starts[s + 1]]`, or without these `length` in a row."""

    order_N: Tensor | None
    starts: Tensor | None  # [S + 1]
    length: int
    number: int


def sequences_of(terms: PolicyTerms) -> Sequences:
    """The sequences that the objective needs, or blocks of rows; never waits for the device."""
    ids_N = terms.sequence_ids_N
    if ids_N is None:
        return Sequences(None, None, BLOCK, -(-terms.weights_N.numel() // BLOCK))
    if terms.sequence_length is not None:
        return Sequences(None, None, terms.sequence_length, terms.num_sequences)
    sorted_ids, order_N = ids_N.sort(stable=True)
    boundaries = torch.arange(terms.num_sequences + 1, device=ids_N.device)
    return Sequences(order_N, torch.searchsorted(sorted_ids, boundaries), 0, terms.num_sequences)


def vectors_of(terms: PolicyTerms) -> tuple[Tensor | None, ...]:
    """Advantages, weights, policy factors, old and reference log-probabilities, each `[N]`."""
    return terms.advantages_N, terms.weights_N, terms.policy_factor_N, terms.old_logp_N, terms.ref_logp_N


def parameters_of(form: DeviceForm) -> list[float]:
    """The objective's numbers, as many as the kernels take."""
    return [float(x) for x in form.parameters] + [0.0] * (4 - len(form.parameters))


def rows_that_count(terms: PolicyTerms, sequences: Sequences) -> Tensor:
    """bool `[N]`: `PolicyTerms.informative_mask`."""
    all_weighted = terms.beta != 0 or terms.entropy_coef != 0
    return _live_rows(*vectors_of(terms)[:3], terms.mask_N, *sequences, all_weighted)


def loss_of_logprobs(
    logp_N: Tensor, entropy_N: Tensor, live_N: Tensor, terms: PolicyTerms, sequences: Sequences, form: DeviceForm
) -> GRPOLoss:
    """Loss and metrics, differentiable in `logp_N` and `entropy_N`."""
    loss, metrics, _, _ = policy_terms_directly(
        logp_N, entropy_N, live_N, terms.mask_N, *sequences, *vectors_of(terms), form.name, parameters_of(form),
        terms.objective.sequence_level, terms.beta, terms.kl, terms.entropy_coef,
        torch.is_grad_enabled() and logp_N.requires_grad,
    )  # fmt: skip
    return GRPOLoss(loss, named_metrics(metrics, terms))


@torch.library.custom_op("fgrpo::live_rows", mutates_args=())
def live_rows(
    advantages_N: Tensor,
    weights_N: Tensor,
    policy_factor_N: Tensor | None,
    mask_N: Tensor | None,
    order_N: Tensor | None,
    starts: Tensor | None,
    length: int,
    num_sequences: int,
    all_weighted: bool,
) -> Tensor:
    """As an op; `all_weighted`: there are terms besides the policy's."""
    live_N = torch.zeros_like(weights_N, dtype=torch.bool)
    if num_sequences > 0:
        with device_of(weights_N):
            live_rows_kernel[(num_sequences,)](
                live_N, order_N, starts, length, weights_N.numel(), advantages_N, weights_N, policy_factor_N, mask_N,
                ALL_WEIGHTED=all_weighted, BLOCK=BLOCK, num_warps=4, **FUSED,
            )  # fmt: skip
    return live_N


@live_rows.register_fake
def _(advantages_N: Tensor, weights_N: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(weights_N, dtype=torch.bool)


@torch.library.custom_op("fgrpo::policy_terms", mutates_args=())
def policy_terms(
    logp_N: Tensor,
    entropy_N: Tensor,
    live_N: Tensor | None,
    mask_N: Tensor | None,
    order_N: Tensor | None,
    starts: Tensor | None,
    length: int,
    num_sequences: int,
    advantages_N: Tensor,
    weights_N: Tensor,
    policy_factor_N: Tensor | None,
    old_logp_N: Tensor | None,
    ref_logp_N: Tensor | None,
    objective: str,
    parameters: list[float],
    gathers: bool,
    beta: float,
    kl: str,
    entropy_coef: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(loss, metrics, d loss / d logp, d loss / d entropy)`: 0-d, `[len(METRICS)]`, and twice `[N]` float32.

    The slopes are empty unless asked for, that in the entropy also without an entropy term. The loss is differentiable
    in logp and entropy. `live_N` None: rows count if they are informative.
    """
    loss, metrics = _loss_and_metrics(weights_N)
    slopes = _slopes(logp_N, entropy_coef, with_gradient)
    if starts is not None and with_gradient:
        slopes[0].fill_(float("nan"))  # of rows whose sequence does not exist
    gather = DEVICE_GATHERS[objective]
    sums = torch.empty(num_sequences, NUM_SUMS.value, dtype=torch.float32, device=logp_N.device)
    N = weights_N.numel()
    with device_of(logp_N):
        if num_sequences > 0:
            policy_terms_kernel[(num_sequences,)](
                sums, *(x if x.numel() else None for x in slopes), order_N, starts, length, N,
                logp_N, entropy_N, live_N, mask_N,
                advantages_N, weights_N, policy_factor_N, old_logp_N, ref_logp_N, *parameters, beta, entropy_coef,
                OBJECTIVE=DEVICE_FUNCTIONS[objective],
                GATHER=gather.function if gathers else None,
                MEAN=gather.mean,
                OWN_RATIO=gathers and not gather.is_log_ratio,
                KL=DEVICE_ESTIMATORS[kl] if beta != 0 else None,
                HAS_ENTROPY=entropy_coef != 0,
                BLOCK=BLOCK, num_warps=TERMS_WARPS, **FUSED,
            )  # fmt: skip
        finish_kernel[(1,)](loss, metrics, sums, starts, num_sequences, N, BLOCK=BLOCK, num_warps=4, **FUSED)
    return loss, metrics, *slopes


@policy_terms.register_fake
def _(logp_N: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    entropy_coef, with_gradient = arguments[-2:]
    return *_loss_and_metrics(logp_N), *_slopes(logp_N, entropy_coef, with_gradient)


def _loss_and_metrics(like: Tensor) -> tuple[Tensor, Tensor]:
    return like.new_empty((), dtype=torch.float32), like.new_empty(len(METRICS), dtype=torch.float32)


def _slopes(logp_N: Tensor, entropy_coef: float, with_gradient: bool) -> tuple[Tensor, Tensor]:
    sizes = (logp_N.numel() if with_gradient else 0, logp_N.numel() if with_gradient and entropy_coef != 0 else 0)
    first, second = (logp_N.new_empty(size, dtype=torch.float32) for size in sizes)
    return first, second


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.mark_non_differentiable(*output[1:])


@first_derivative_only("grpo_loss")
def _backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    by_logp_N, by_entropy_N = ctx.saved_tensors
    return (by_logp_N * grad_loss, by_entropy_N * grad_loss if by_entropy_N.numel() else None, *[None] * 18)


policy_terms.register_autograd(_backward, setup_context=_save)
policy_terms_directly = direct(policy_terms, _save, _backward)
_live_rows = direct(live_rows)


def named_metrics(metrics: Tensor, terms: PolicyTerms) -> dict[str, Tensor]:
    """0-d tensors by name."""
    named = dict(zip(METRICS, metrics.unbind(), strict=True))
    if terms.ref_logp_N is None:
        del named["kl"]
    return named
