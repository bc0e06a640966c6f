"""Which tensors take the Triton kernels; all others take the PyTorch path."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fgrpo_kernels.jit import HAS_TRITON, INTERPRETED

# torch calls AMD's devices "cuda" too.
DEVICES = {"cuda", "xpu"} | ({"cpu"} if INTERPRETED else set())
DTYPES = {torch.float32, torch.bfloat16, torch.float16}


def uses_triton(x: Tensor) -> bool:
    """Whether an op on `x` runs Triton kernels: a GPU tensor (any tensor in the interpreter) that is not float64.

    float64 is for checking gradients; the PyTorch path has it on every device.
    """
    return HAS_TRITON and x.device.type in DEVICES and x.dtype in DTYPES


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """While it lasts kernels are launched on the device of `x`, which need not be the current one."""
    return nullcontext() if x.device.type == "cpu" else torch.get_device_module(x.device).device_of(x)
