"""The launch of the token-level loss's kernel, for rows of logits anywhere."""

from __future__ import annotations

from typing import Any

from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.launch_table import multiprocessors, tile_for
from fgrpo_kernels.gpu.loss_kernel import grpo_loss_kernel
from fgrpo_kernels.gpu.loss_kernel_overlapped import grpo_loss_overlapped_kernel
from fgrpo_kernels.kl import DEVICE_ESTIMATORS
from fgrpo_kernels.objectives import DEVICE_FUNCTIONS


def launch_loss(rows: tuple[Any, ...], numbers: tuple[Any, ...], num_rows: int, objective: str, kl: str) -> None:
    """Write logp, entropy and, unless there is nowhere to, the gradient of each row.

    rows: the kernel's arguments up to `entropy_ptr`; numbers: those from there to `entropy_coef`
    """
    logits, gradient = rows[0], rows[4]
    vocab, *_, beta, entropy_coef = numbers
    tile = tile_for(logits, vocab, "loss")
    constants = tile.arguments() | {
        "OBJECTIVE": DEVICE_FUNCTIONS[objective],
        "KL": DEVICE_ESTIMATORS[kl] if beta != 0 else None,
        "HAS_ENTROPY": entropy_coef != 0,
    }
    programs = tile.choice.programs
    with device_of(logits):
        if programs and gradient is not None:
            grid = (min(num_rows, programs * multiprocessors(logits.device)),)
            grpo_loss_overlapped_kernel[grid](*rows, num_rows, *numbers, **constants)
        else:
            one_by_one = {"HOLD": 0, "EARLY": True} if programs else {}
            grpo_loss_kernel[(num_rows,)](*rows, *numbers, **constants, **one_by_one)
