"""Log-probability of each target and entropy of each row of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels import reference
from fgrpo_kernels.checks import check_floating, check_positive, check_rows, check_targets, check_tensors
from fgrpo_kernels.chunked_rows import chunked_backward_, chunked_forward
from fgrpo_kernels.derivatives import as_constant, first_derivative_only, needs_reference
from fgrpo_kernels.direct import direct
from fgrpo_kernels.dispatch import uses_triton
from fgrpo_kernels.gpu import token_logprobs as gpu
from fgrpo_kernels.results import TokenLogprobs
from fgrpo_kernels.rowwise import RowStats, accumulation_dtype


def token_logprobs(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, inplace_backward: bool = False
) -> TokenLogprobs:
    """`log_softmax(logits / temperature)` at the targets, and the entropy of that distribution, both differentiable.

    Args:
        logits: `[..., V]` of any floating dtype; leading dimensions may be strided, as in `logits[:, :-1]`.
        targets: `[...]` int64 in `[0, V)`.
        temperature: divides the logits.
        inplace_backward: write the gradient over the logits themselves, which saves memory of their size. The
            logits are then destroyed by the backward pass, and a second backward through them raises.

    Returns:
        TokenLogprobs(logp, entropy), each `[...]` float32 (float64 for float64 logits), in nats. The arithmetic is
        in that dtype whatever the logits are. Rows whose incoming gradients are 0 get a gradient of exactly 0, and
        cost nothing.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> token_logprobs(logits, torch.tensor([0, 1])).logp
        tensor([-0.6931, -0.1269])

    Raises:
        TypeError: logits that are not floating point, targets that are not int64, arguments that are no tensors.
        ValueError: shapes that do not match, a target outside the vocabulary, a temperature that is not positive,
            `inplace_backward` with logits whose rows share memory.
        NotImplementedError: a gradient with `create_graph=True`.
    """
    check_tensors("token_logprobs", logits=logits, targets=targets)
    check_floating("token_logprobs", "logits", logits)
    check_rows("token_logprobs", "targets", targets, logits.shape[:-1])
    check_targets("token_logprobs", targets, logits.shape[-1])
    check_positive("token_logprobs", "temperature", temperature)
    if inplace_backward and any(n > 1 and stride == 0 for n, stride in zip(logits.shape, logits.stride(), strict=True)):
        raise ValueError(
            f"token_logprobs: inplace_backward overwrites the logits, but these share memory, with strides "
            f"{logits.stride()}; were they expanded? Call .contiguous() first, or leave inplace_backward off"
        )
    if needs_reference(logits):
        return reference.token_logprobs(logits, targets, temperature=temperature)
    targets_N = as_constant(targets).reshape(-1)
    outputs = logprobs_of_live_rows(logits, targets_N, None, temperature, logits.shape[-1], inplace_backward)
    return TokenLogprobs(*(x_N.view(targets.shape) for x_N in outputs))


def logprobs_of_live_rows(
    logits: Tensor,
    targets_N: Tensor,
    live_N: Tensor | None,
    temperature: float,
    vocab_size: int,
    inplace_backward: bool = False,
) -> tuple[Tensor, Tensor]:
    """logp and entropy `[N]` of the rows of `logits` over its first `vocab_size` columns; 0 where not live."""
    outputs = _forward(logits, targets_N, live_N, temperature, vocab_size, inplace_backward)
    return outputs[0], outputs[1]


@torch.library.custom_op("fgrpo::token_logprobs", mutates_args=())
def token_logprobs_forward(
    logits: Tensor,
    targets_N: Tensor,
    live_N: Tensor | None,
    temperature: float,
    vocab_size: int,
    inplace_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RowStats, each `[N]`; differentiable in the first two."""
    if uses_triton(logits):
        outputs = _four_vectors(logits, targets_N)
        gpu.launch_forward(logits, targets_N, live_N, temperature, vocab_size, outputs)
        return outputs
    return chunked_forward(logits, targets_N, live_N, temperature, vocab_size)


@token_logprobs_forward.register_fake
def _(logits: Tensor, targets_N: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _four_vectors(logits, targets_N)


def _four_vectors(logits: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(logits.dtype)
    a, b, c, d = (torch.empty(targets_N.numel(), dtype=dtype, device=logits.device) for _ in range(4))
    return a, b, c, d


@torch.library.custom_op("fgrpo::token_logprobs_backward_", mutates_args={"grad_logits"})
def token_logprobs_backward_(
    grad_logits: Tensor,
    logits: Tensor,
    targets_N: Tensor,
    logp_N: Tensor,
    entropy_N: Tensor,
    peak_N: Tensor,
    log_sum_N: Tensor,
    grad_logp_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> None:
    """Write the logits' gradient to `grad_logits`, which is contiguous."""
    saved = (logp_N, entropy_N, peak_N, log_sum_N)
    _backward_to(grad_logits, logits, targets_N, saved, grad_logp_N, grad_entropy_N, temperature, vocab_size)


@torch.library.custom_op("fgrpo::token_logprobs_backward_inplace", mutates_args={"logits"})
def token_logprobs_backward_inplace(
    logits: Tensor,
    targets_N: Tensor,
    logp_N: Tensor,
    entropy_N: Tensor,
    peak_N: Tensor,
    log_sum_N: Tensor,
    grad_logp_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> None:
    """Overwrite the logits with their gradient."""
    saved = (logp_N, entropy_N, peak_N, log_sum_N)
    _backward_to(logits, logits, targets_N, saved, grad_logp_N, grad_entropy_N, temperature, vocab_size)


@token_logprobs_backward_.register_fake
@token_logprobs_backward_inplace.register_fake
def _(*_: Any) -> None:
    return None


def _backward_to(
    grad_logits: Tensor,
    logits: Tensor,
    targets_N: Tensor,
    saved: gpu.FourVectors,
    grad_logp_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> None:
    incoming = (grad_logp_N, grad_entropy_N, temperature, vocab_size)
    if uses_triton(logits):
        gpu.launch_backward(logits, grad_logits, targets_N, saved, *incoming)
    else:
        chunked_backward_(grad_logits, logits, targets_N, RowStats(*saved), *incoming)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets_N, _, ctx.temperature, ctx.vocab_size, ctx.inplace = inputs
    ctx.save_for_backward(logits, targets_N, *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


@first_derivative_only("token_logprobs")
def _backward(
    ctx: Any, grad_logp_N: Tensor | None, grad_entropy_N: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    logits, *others = ctx.saved_tensors
    arguments = (logits, *others, grad_logp_N, grad_entropy_N, ctx.temperature, ctx.vocab_size)
    if ctx.inplace and not torch.compiler.is_compiling():
        # detach shares the version counter: a second backward finds the saved logits changed, and raises.
        grad_logits = logits.detach()
        token_logprobs_backward_inplace(grad_logits, *arguments[1:])
    else:
        grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        _write_gradient(grad_logits, *arguments)
    return grad_logits, None, None, None, None, None


token_logprobs_forward.register_autograd(_backward, setup_context=_save)
_forward = direct(token_logprobs_forward, _save, _backward)
_write_gradient = direct(token_logprobs_backward_)
