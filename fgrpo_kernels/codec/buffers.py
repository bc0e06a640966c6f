"""Tensors as the C++ extension takes them: flat, contiguous, of known dtypes; and as typed buffers, without NumPy."""

from __future__ import annotations

import ctypes
import warnings
from typing import Any

import torch
from torch import Tensor

from fgrpo_kernels.dispatch import DEVICES, HAS_TRITON

# Formats of the buffer protocol.
_FORMATS = {torch.float64: "d", torch.float32: "f", torch.bfloat16: "H", torch.uint8: "B"}
_WRITABLE = 0x200  # PyBUF_WRITE
_memory_at = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)


def thread_count(function: str, num_threads: int | None) -> int:
    """The core's count, where 0 means every core."""
    if num_threads is None:
        return 0
    if require_int(f"{function}: num_threads", num_threads) < 1:
        raise ValueError(f"{function}: num_threads must be at least 1, or None for every core, got {num_threads}")
    return num_threads


def require_int(where: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where} must be an int, got {value!r}")
    return value


def require_flat(where: str, tensor: object, *dtypes: torch.dtype) -> Tensor:
    """`tensor` itself, or the tensor that shares a NumPy array's memory, if it has the layout that the codec reads."""
    if not isinstance(tensor, Tensor):
        if not hasattr(tensor, "__array_interface__"):
            raise TypeError(f"{where} must be a tensor, got {type(tensor).__name__}")
        tensor = _tensor_over(tensor)
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{where} must be {expected}, got {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.device.type != "cpu" and not (HAS_TRITON and tensor.device.type in DEVICES):
        raise TypeError(
            f"{where} must be on a GPU that Triton serves or on the CPU, got {tensor.device}; call .cpu() first"
        )
    if tensor.dim() != 1:
        raise ValueError(f"{where} must be 1-D, got shape {tuple(tensor.shape)}; flatten it first")
    if not tensor.is_contiguous():
        raise ValueError(f"{where} must be contiguous, got stride {tensor.stride(0)}; call .contiguous() first")
    return tensor


def require_on_cpu(where: str, tensor: object, *dtypes: torch.dtype) -> Tensor:
    """`require_flat` for what only C++ can do."""
    flat = require_flat(where, tensor, *dtypes)
    if flat.device.type != "cpu":
        raise TypeError(f"{where} must be on the CPU, got {flat.device}; call .cpu() first")
    return flat


def require_writable(where: str, tensor: object, dtype: torch.dtype = torch.float32) -> Tensor:
    """`require_flat` for what is written in place. Of a tensor, C++ looks whether its memory lets it."""
    flat = require_flat(where, tensor, dtype)
    if not isinstance(tensor, Tensor) and _is_read_only(tensor):
        raise ValueError(f"{where} is a read-only array, and is written in place; pass a copy that can be written")
    if flat.requires_grad:
        raise ValueError(f"{where} is written in place, so it must not require grad; call .detach() first")
    return flat


def _is_read_only(array: Any) -> bool:
    return bool(array.__array_interface__["data"][1])


def _tensor_over(array: Any) -> Tensor:
    """The tensor that shares a NumPy array's memory."""
    if not _is_read_only(array):
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch's, that a tensor does not know that it must not be written
        return torch.from_numpy(array)


def output_tensor(function: str, out: Tensor | None, size: int, device: torch.device | None = None) -> Tensor:
    """`out` if it fits, or a new tensor; `device` None is the CPU."""
    device = device or torch.device("cpu")
    if out is None:
        return torch.empty(size, dtype=torch.float32, device=device)
    if not isinstance(out, Tensor):
        raise TypeError(f"{function}: out must be a tensor, got {type(out).__name__}")
    out = require_writable(f"{function}: out", out)
    if out.numel() != size:
        raise ValueError(f"{function}: out has {out.numel()} elements, expected {size}")
    if out.device != device:
        raise ValueError(f"{function}: out is on {out.device}, the payload on {device}; move one of them")
    return out


def buffer_of(tensor: Tensor) -> memoryview:
    """The tensor's memory as a typed buffer, without NumPy. Valid while the caller holds the tensor."""
    form = _FORMATS[tensor.dtype]
    if tensor.numel() == 0:
        return memoryview(bytearray(8)).cast(form)[:0]  # type: ignore[call-overload, no-any-return, unused-ignore]
    view: memoryview = _memory_at(tensor.data_ptr(), tensor.nbytes, _WRITABLE)
    return view if form == "B" else view.cast(form)  # type: ignore[call-overload, no-any-return, unused-ignore]
