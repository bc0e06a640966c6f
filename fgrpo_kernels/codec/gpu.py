"""The delta codec on a GPU, so that a delta leaves the device compressed: the bits of the C++ codec.

Format and arithmetic: `csrc/delta_codec.h`. `encode` waits for the device once, to learn whether every value could be
encoded; `decode` never waits.

P parameters (elements of a delta)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.codec.gpu_blocks import decode_kernel, encode_kernel
from fgrpo_kernels.codec.gpu_values import (
    LARGEST_MAGNITUDE,
    NO_FAULT,
    ONE_ROUNDING_EACH,
    bfloat16_kernel,
    float32_kernel,
)
from fgrpo_kernels.dispatch import device_of

BITS = {"int8": 8, "int4": 4, "int2": 2}  # of the codecs with blocks
CODECS = (*BITS, "bf16", "none")

THREADS = 256  # of a program
# Values that a thread reads at once: 16 bytes of float32, or of bfloat16 where that is all there is. With 8 float32s,
# whose order in memory is not that of a write, the compiler would exchange them through shared memory.
FLOAT32S, BFLOAT16S = 4, 8
COLUMNS = 128  # values that the kernels without blocks reduce together: what 32 threads read at once
LONGEST_ROW = 1024  # values from a fault's noted start on, among which it is: the largest block


class Delta(NamedTuple):
    """What is encoded: `new - base + residual`, 1-D and contiguous on one device, each optional but the first."""

    new: Tensor
    base: Tensor | None
    residual: Tensor | None

    @property
    def size(self) -> int:
        return self.new.numel()

    def parts(self) -> dict[str, Tensor]:
        return {name: x for name, x in self._asdict().items() if x is not None}


def encode(
    new: Tensor,
    base: Tensor | None,
    residual: Tensor | None,
    codec: str,
    block: int,
    rounding: str,
    seed: int,
    scale: str = "absmax",
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`(codes, scales)` of `new - base + residual` on its device: uint8 [bytes], bfloat16 [ceil(P / block)].

    new, base: float32 or bfloat16 [P]
    residual: float32 [P], updated in place. Because that overwrites an input, a pass before it looks for values that
        cannot be encoded, and the update is not made if there is one.
    codec, block, rounding, seed: as `fgrpo_kernels.codec.encode` takes and checks them
    scale: "absmax"
    out: codes and scales of the right sizes to write to; new ones where None

    Raises ValueError where a value is NaN, infinite or beyond 2**127, naming its index, with `residual` unchanged; and
    for operands of unequal sizes, on different devices or in the same memory, and for what only the CPU's codec has.
    """
    _check_codec("encode", codec)
    if scale != "absmax":
        raise ValueError(f"encode: on a GPU scale must be 'absmax', got {scale!r}; for that one call .cpu() first")
    delta = Delta(new.detach(), None if base is None else base.detach(), residual)
    codes, scales = out or _empty_payload(codec, block, delta.size, new.device)
    _check_operands(delta, codes, scales)

    warp = _warp(new)
    fault = torch.full((), NO_FAULT.value, dtype=torch.int64, device=new.device)
    if residual is not None and codec != "none":
        _launch(float32_kernel, delta, None, fault, **tile_of_values(warp))
    stochastic = rounding == "stochastic"
    seed_halves = (_signed(seed & 0xFFFFFFFF), _signed(seed >> 32))
    if codec == "none":
        _launch(float32_kernel, delta, codes.view(torch.float32), fault, **tile_of_values(warp))
    elif codec == "bf16":
        halves, tile = codes.view(torch.int16), tile_of_values(warp)
        _launch(bfloat16_kernel, delta, halves, fault, *seed_halves, STOCHASTIC=stochastic, **tile)
    else:
        narrow = all(x.dtype == torch.bfloat16 for x in delta.parts().values())
        tile = tile_of_blocks(codec, block, warp, BFLOAT16S if narrow and not stochastic else FLOAT32S)
        scale_bits = scales.view(torch.int16)
        _launch(encode_kernel, delta, codes, scale_bits, fault, *seed_halves, STOCHASTIC=stochastic, **tile)
    _refuse_faults(delta, fault)
    if residual is not None and codec == "none":
        residual.zero_()
    return codes, scales


def decode(codes: Tensor, scales: Tensor, codec: str, block: int, out: Tensor) -> None:
    """Write code * scale to `out`, float32 [P], on the device of all three."""
    _check_codec("decode", codec)
    if not codes.device == scales.device == out.device:
        raise ValueError(f"decode: out is on {out.device}, codes on {codes.device}, scales on {scales.device}")
    if codec == "none":
        out.view(torch.uint8).copy_(codes)
    elif codec == "bf16":
        out.copy_(codes.view(torch.bfloat16))
    elif out.numel() > 0:
        tile = tile_of_blocks(codec, block, _warp(out), FLOAT32S)
        with device_of(out):
            decode_kernel[(-(-scales.numel() // tile["ROWS"]),)](
                codes, scales.view(torch.int16), out, out.numel(), **tile, **ONE_ROUNDING_EACH
            )


def tile_of_blocks(codec: str, block: int, warp: int, values: int) -> dict[str, int]:
    """Arguments of a launch: blocks of which each thread has `values` bytes of codes, at least one block."""
    slots = 8 // BITS[codec]
    rows = max(1, values * THREADS * slots // block)
    return {"BITS": BITS[codec], "BLOCK": block, "ROWS": rows, "num_warps": THREADS // warp}


def tile_of_values(warp: int) -> dict[str, int]:
    """Arguments of a launch: rows of values, 16 bytes of float32 a thread."""
    return {"ROWS": FLOAT32S * THREADS // COLUMNS, "COLUMNS": COLUMNS, "num_warps": THREADS // warp}


def _empty_payload(codec: str, block: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = -(-size // block) if codec in BITS else 0
    length = rows * (block * BITS[codec] // 8) if codec in BITS else size * {"bf16": 2, "none": 4}[codec]
    codes = torch.empty(length, dtype=torch.uint8, device=device)
    return codes, torch.empty(rows, dtype=torch.bfloat16, device=device)


def _warp(x: Tensor) -> int:
    """Threads of a warp on the device of `x`."""
    return 64 if x.device.type == "cuda" and torch.version.hip is not None else 32


def _signed(word: int) -> int:
    """The same 32 bits as an int32, so that a kernel takes any seed as the same type."""
    return word - (word >> 31 << 32)


def _launch(kernel: Any, delta: Delta, *arguments: object, **constants: int) -> None:
    """A launch of any kernel that reads a delta, over tiles of ROWS blocks or rows."""
    tile = constants["ROWS"] * (constants["BLOCK"] if "BLOCK" in constants else constants["COLUMNS"])
    if delta.size > 0:
        with device_of(delta.new):
            kernel[(-(-delta.size // tile),)](*delta, delta.size, *arguments, **constants, **ONE_ROUNDING_EACH)


def _check_codec(op: str, codec: str) -> None:
    if codec not in CODECS:
        raise ValueError(f"{op}: on a GPU codec must be one of {', '.join(CODECS)}, got {codec!r}")


def _check_operands(delta: Delta, codes: Tensor, scales: Tensor) -> None:
    new, residual = delta.new, delta.residual
    hints = {"base": "are they the same parameters?", "residual": "was it made for another model?"}
    for name, x in {**delta.parts(), "out": codes}.items():
        if x.device != new.device:
            raise ValueError(f"encode: {name} is on {x.device}, new on {new.device}; move one of them")
        if name in hints and x.numel() != new.numel():
            raise ValueError(f"encode: {name} has {x.numel()} values, new has {new.numel()}; {hints[name]}")
    for name, x in delta.parts().items():
        written = [codes, scales] if residual is None or x is residual else [codes, scales, residual]
        if any(_overlap(x, y) for y in written):
            raise ValueError(f"encode: {name} shares memory with residual or the output, which encode overwrites")


def _overlap(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def _refuse_faults(delta: Delta, fault: Tensor) -> None:
    """Wait for the kernels, and raise if one has met a value that cannot be encoded."""
    start = int(fault)
    if start == NO_FAULT.value:
        return
    near = {name: x[start : start + LONGEST_ROW].cpu().float() for name, x in delta.parts().items()}
    total = near["new"]
    if "base" in near:
        total = total - near["base"]
    if "residual" in near:
        total = total + near["residual"]
    at = int(((total.view(torch.int32) & 0x7FFFFFFF) > LARGEST_MAGNITUDE.value).int().argmax())
    parts = ", ".join(f"{name} = {float(x[at]):.6g}" for name, x in near.items())
    raise ValueError(
        f"encode: the delta at index {start + at} is {float(total[at]):.6g} ({parts}); values must be finite and at "
        "most 2^127 in magnitude. Did training diverge?"
    )
