"""Argument checks that several public ops share. Messages name the op, what was expected and what came."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from fgrpo_kernels.derivatives import transforms_active
from fgrpo_kernels.results import GroupAdvantages, TokenLogprobs


def check_tensors(op: str, optional: Mapping[str, object] | None = None, **required: object) -> None:
    """All must be tensors on one device; the optional ones may be None."""
    given = required | {name: x for name, x in (optional or {}).items() if x is not None}
    first = next(iter(given))
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}; {_remedy(name, x)}")
        device = given[first].device  # type: ignore[attr-defined]
        if x.device != device:
            raise TypeError(
                f"{op}: {name} is on {x.device} but {first} is on {device}; move it with {name}.to({first}.device)"
            )


def _remedy(name: str, x: object) -> str:
    if isinstance(x, GroupAdvantages | TokenLogprobs):
        return f"pass its .{type(x)._fields[0]}"
    if isinstance(x, torch.nn.Module):
        return "pass its .weight"
    if hasattr(x, "__array__"):
        return f"convert it with torch.as_tensor({name})"
    if isinstance(x, list | tuple | float | int):
        return f"convert it with torch.tensor({name})"
    return "it is needed" if x is None else "what does it hold?"


def check_weights(op: str, weights: Tensor) -> None:
    """Weights must be more than the mask that they are made from."""
    if not weights.is_floating_point():
        raise TypeError(
            f"{op}: weights must be a floating-point tensor, got {weights.dtype}; make them from the mask, with "
            "token_weights(mask, reduction)"
        )
    if can_look_at(weights):
        used = weights[weights != 0]
        if used.numel() > 1 and bool((used == 1).all()):
            _warn_of_a_mask(op)


@cache
def _warn_of_a_mask(op: str) -> None:
    """Once, since a sum over tokens may be meant."""
    warnings.warn(
        f"{op}: all weights are 0 or 1, so the loss is a sum over tokens; if that is a mask, make the weights from it, "
        "with token_weights(mask, reduction)",
        stacklevel=5,  # of who calls the op
    )


def check_logprobs(op: str, name: str, logp: Tensor | None, counted: Tensor) -> None:
    """Log-probabilities of the counted rows are not all at 0 and above, where that can be looked at."""
    if logp is None or not can_look_at(logp):
        return
    values = logp.expand(counted.shape)[counted != 0]
    if values.numel() > 0 and float(values.min()) >= 0 < float(values.max()):
        raise ValueError(
            f"{op}: {name} must be log-probabilities, which are at most 0, got {float(values.min()):.4g} to "
            f"{float(values.max()):.4g}; are they probabilities, or their logarithms with the sign changed?"
        )


def check_floating(op: str, name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be a floating-point tensor, got {x.dtype}")


def check_positive(op: str, name: str, value: float) -> None:
    if not 0 < value < math.inf:  # so that NaN fails too
        raise ValueError(f"{op}: {name} must be a positive number, got {value}")


def check_rows(op: str, name: str, x: Tensor, expected: torch.Size) -> None:
    """`x` must have one entry a row, and there must be at least one leading dimension."""
    if len(expected) == 0:
        raise ValueError(f"{op}: expected at least one dimension before the last one, got a single row")
    if x.shape != expected:
        raise ValueError(
            f"{op}: {name} must have one entry per row, shape {list(expected)}, got {list(x.shape)}; "
            "was it sliced like the logits or hidden states?"
        )


def can_look_at(x: Tensor) -> bool:
    """Whether a check may read values.

    That is free on the CPU, a synchronisation elsewhere, a break while compiling, and an error inside of `vmap`.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not transforms_active()


def check_targets(op: str, targets: Tensor, vocab_size: int, live: Tensor | None = None) -> None:
    """Integer targets, in `[0, vocab_size)` where the bool tensor `live` is True (None: everywhere).

    The range is checked on the CPU only, where it costs no synchronisation, and not while compiling. A GPU kernel
    gives NaN for a target outside it.
    """
    check_token_ids(op, targets)
    if not can_look_at(targets):
        return
    if live is not None:
        targets = targets[live]
    if targets.numel() > 0:
        lowest, highest = (int(x) for x in targets.aminmax())
        if lowest < 0 or highest >= vocab_size:
            raise ValueError(
                f"{op}: targets of rows that count must be in [0, {vocab_size}), got {lowest} to {highest}; "
                "padding such as -100 needs weight 0 (or a row mask)"
            )


def check_token_ids(op: str, targets: Tensor) -> None:
    if targets.dtype != torch.int64:
        raise TypeError(f"{op}: targets must be int64 token ids, got {targets.dtype}; convert them with targets.long()")


def check_head(op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, *, one_dtype: bool) -> None:
    """`hidden [..., H]`, `weight [V, H]` and `bias [V]`, floating, and of one dtype if they have to be."""
    check_floating(op, "hidden", hidden)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{op}: weight must be [V, H] with H = {hidden.shape[-1]}, hidden's last dimension, got "
            f"{list(weight.shape)}; is it transposed?"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias must be [V] = [{weight.shape[0]}], got {list(bias.shape)}")
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None:
            check_floating(op, name, x)
        if x is not None and one_dtype and x.dtype != hidden.dtype:
            raise TypeError(
                f"{op}: {name} is {x.dtype} but hidden is {hidden.dtype}; cast one of them, or call it inside "
                "torch.autocast"
            )


def real_vocab_size(op: str, vocab_size: int | None, columns: int) -> int:
    """`vocab_size` if given and sensible, else all columns."""
    if vocab_size is None:
        return columns
    if not 0 < vocab_size <= columns:
        raise ValueError(f"{op}: vocab_size must be in 1 to {columns}, the columns there are, got {vocab_size}")
    return vocab_size
