"""The delta codec on a GPU, so that a delta leaves the device compressed: the bits of the C++ codec.

Format and arithmetic: `csrc/delta_codec.h`. `encode` waits for the device once, to learn whether every value could be
encoded; `decode` never waits.

P parameters (elements of a delta)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.delta_codec_kernels import (
    LARGEST_MAGNITUDE,
    NO_FAULT,
    ONE_ROUNDING_EACH,
    decode_kernel,
    encode_kernel,
    sum_kernel,
)

BITS = {"int8": 8, "int4": 4, "int2": 2}
CODECS = (*BITS, "none")

THREADS = 256
# Of a program: 256 threads have 16 bytes each of float32, or of bfloat16 where that is all there is. With twice as many
# values a thread, float32 would go through shared memory between its loads and stores.
COLUMNS = 128  # values that `sum_kernel` reduces together: what a warp of 32 reads at a time
LONGEST_ROW = 1024  # values after a fault's noted start among which it is; the largest block


class Delta(NamedTuple):
    """What is encoded: `new - base + residual`, 1-D and contiguous on one device, each optional but the first."""

    new: Tensor
    base: Tensor | None
    residual: Tensor | None

    @property
    def size(self) -> int:
        return self.new.numel()


def encode(
    new: Tensor,
    base: Tensor | None,
    residual: Tensor | None,
    codec: str,
    block: int,
    rounding: str,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """`(codes, scales)` of `new - base + residual` on its device: uint8 [bytes], bfloat16 [ceil(P / block)].

    new, base: float32 or bfloat16 [P]
    residual: float32 [P], updated in place. Because that overwrites an input, its update is a second pass, which
        writes nothing if the first one has found a value that cannot be encoded.
    codec, block, rounding, seed: as `fgrpo_kernels.codec.encode` has checked them

    Raises ValueError where a value is NaN, infinite or beyond 2**127, naming its index, with `residual` unchanged; and
    for operands of unequal sizes, on different devices or in the same memory.
    """
    if codec not in CODECS:
        raise ValueError(f"encode: codec must be one of {', '.join(CODECS)} on a GPU, got {codec!r}")
    delta = Delta(new.detach(), None if base is None else base.detach(), residual)
    _check_operands(delta)
    fault = torch.full((), NO_FAULT.value, dtype=torch.int64, device=new.device)
    if codec == "none":
        codes = torch.empty(4 * delta.size, dtype=torch.uint8, device=new.device)
        scales = torch.empty(0, dtype=torch.bfloat16, device=new.device)
        _launch_sum(delta, codes.view(torch.float32), fault)
        _refuse_faults(delta, fault)
        if residual is not None:
            residual.zero_()
        return codes, scales

    rows = -(-delta.size // block)
    codes = torch.empty(rows * (block * BITS[codec] // 8), dtype=torch.uint8, device=new.device)
    scales = torch.empty(rows, dtype=torch.bfloat16, device=new.device)
    if rows == 0:
        return codes, scales
    if residual is not None:
        _launch_sum(delta, None, fault)
    stochastic = rounding == "stochastic"
    narrow = stochastic or torch.float32 in {x.dtype for x in delta if x is not None}
    tile = codec_tile(codec, block, values_a_thread=4 if narrow else 8, warp=_warp_of(new.device))
    with device_of(new):
        encode_kernel[(-(-rows // tile["ROWS"]),)](
            *delta, delta.size, codes, scales.view(torch.int16), fault, seed - (seed >> 63 << 64),
            STOCHASTIC=stochastic, **tile, **ONE_ROUNDING_EACH,
        )  # fmt: skip
    _refuse_faults(delta, fault)
    return codes, scales


def decode(codes: Tensor, scales: Tensor, codec: str, block: int, out: Tensor) -> None:
    """Write code * scale to `out`, float32 [P], on the device of all three."""
    if not codes.device == scales.device == out.device:
        raise ValueError(f"decode: out is on {out.device}, codes on {codes.device} and scales on {scales.device}")
    if codec not in CODECS:
        raise ValueError(f"decode: codec must be one of {', '.join(CODECS)} on a GPU, got {codec!r}")
    if codec == "none":
        out.view(torch.uint8).copy_(codes)
        return
    if out.numel() == 0:
        return
    tile = codec_tile(codec, block, values_a_thread=4, warp=_warp_of(out.device))
    with device_of(out):
        decode_kernel[(-(-scales.numel() // tile["ROWS"]),)](
            codes, scales.view(torch.int16), out, out.numel(), **tile, **ONE_ROUNDING_EACH
        )


def codec_tile(codec: str, block: int, *, values_a_thread: int, warp: int) -> dict[str, int]:
    """A program's share, as arguments of the launch: at least one block, else THREADS times as many bytes of codes."""
    slots = 8 // BITS[codec]
    rows = max(1, values_a_thread * THREADS * slots // block)
    return {"BITS": BITS[codec], "BLOCK": block, "ROWS": rows, "num_warps": THREADS // warp}


def sum_tile(*, values_a_thread: int, warp: int) -> dict[str, int]:
    return {"ROWS": values_a_thread * THREADS // COLUMNS, "COLUMNS": COLUMNS, "num_warps": THREADS // warp}


def _warp_of(device: torch.device) -> int:
    """Threads of a warp."""
    return 64 if device.type == "cuda" and torch.version.hip is not None else 32


def _launch_sum(delta: Delta, out: Tensor | None, fault: Tensor) -> None:
    if delta.size == 0:
        return
    tile = sum_tile(values_a_thread=4, warp=_warp_of(delta.new.device))
    with device_of(delta.new):
        sum_kernel[(-(-delta.size // (tile["ROWS"] * tile["COLUMNS"])),)](
            *delta, delta.size, out, fault, **tile, **ONE_ROUNDING_EACH
        )


def _check_operands(delta: Delta) -> None:
    new = delta.new
    for name, x, whose in (("base", delta.base, "parameters"), ("residual", delta.residual, "model")):
        if x is None:
            continue
        if x.device != new.device:
            raise ValueError(f"encode: {name} is on {x.device}, new on {new.device}; move one of them")
        if x.numel() != new.numel():
            likely = "are they the same parameters?" if whose == "parameters" else "was it made for another model?"
            raise ValueError(f"encode: {name} has {x.numel()} values, new has {new.numel()}; {likely}")
    for name, x in (("new", new), ("base", delta.base)):
        if x is not None and delta.residual is not None and _overlap(x, delta.residual):
            raise ValueError(f"encode: {name} shares memory with residual, which encode overwrites")


def _overlap(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def _refuse_faults(delta: Delta, fault: Tensor) -> None:
    """Wait for the kernels, and raise if one has met a value that cannot be encoded."""
    start = int(fault)
    if start == NO_FAULT.value:
        return
    parts: dict[str, Any] = {
        name: x[start : start + LONGEST_ROW].cpu().float() for name, x in delta._asdict().items() if x is not None
    }
    total = parts["new"]
    if "base" in parts:
        total = total - parts["base"]
    if "residual" in parts:
        total = total + parts["residual"]
    at = int(((total.view(torch.int32) & 0x7FFFFFFF) > LARGEST_MAGNITUDE.value).int().argmax())
    named = ", ".join(f"{name} = {float(x[at]):.6g}" for name, x in parts.items())
    raise ValueError(
        f"encode: the delta at index {start + at} is {float(total[at]):.6g} ({named}); values must be finite and at most "
        "2^127 in magnitude. Did training diverge?"
    )
