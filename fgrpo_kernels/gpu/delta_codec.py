"""The delta codec on a GPU, so that a delta leaves the device compressed: the bits of the C++ codec.

Format and arithmetic: `csrc/delta_codec.h`. `encode` waits for the device once, to learn whether every value could be
encoded; `decode` never waits.

P parameters (elements of a delta)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.dispatch import device_of
from fgrpo_kernels.gpu.delta_codec_blocks import decode_kernel, encode_kernel
from fgrpo_kernels.gpu.delta_codec_values import (
    LARGEST_MAGNITUDE,
    NO_FAULT,
    ONE_ROUNDING_EACH,
    bfloat16_kernel,
    float32_kernel,
)

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
) -> tuple[Tensor, Tensor]:
    """`(codes, scales)` of `new - base + residual` on its device: uint8 [bytes], bfloat16 [ceil(P / block)].

    new, base: float32 or bfloat16 [P]
    residual: float32 [P], updated in place. Because that overwrites an input, a pass before it looks for values that
        cannot be encoded, and the update is not made if there is one.
    codec, block, rounding, seed: as `fgrpo_kernels.codec.encode` takes and checks them
    scale: "absmax"

    Raises ValueError where a value is NaN, infinite or beyond 2**127, naming its index, with `residual` unchanged; and
    for operands of unequal sizes, on different devices or in the same memory, and what there is on the CPU only.
    """
    _check_codec("encode", codec)
    if scale != "absmax":
        raise ValueError(f"encode: on a GPU scale must be 'absmax', got {scale!r}; for that one call .cpu() first")
    delta = Delta(new.detach(), None if base is None else base.detach(), residual)
    _check_operands(delta)
    stochastic = rounding == "stochastic"
    seed_halves = (_signed(seed & 0xFFFFFFFF), _signed(seed >> 32))
    fault = torch.full((), NO_FAULT.value, dtype=torch.int64, device=new.device)
    if residual is not None and codec != "none":
        _launch(float32_kernel, delta, None, fault, **tile_of_values(_warp(new)))

    scales = torch.empty(-(-delta.size // block) if codec in BITS else 0, dtype=torch.bfloat16, device=new.device)
    bytes_of_codes = {"none": 4 * delta.size, "bf16": 2 * delta.size}
    length = bytes_of_codes[codec] if codec not in BITS else scales.numel() * (block * BITS[codec] // 8)
    codes = torch.empty(length, dtype=torch.uint8, device=new.device)
    if codec == "none":
        _launch(float32_kernel, delta, codes.view(torch.float32), fault, **tile_of_values(_warp(new)))
    elif codec == "bf16":
        tile = tile_of_values(_warp(new))
        _launch(bfloat16_kernel, delta, codes.view(torch.int16), fault, *seed_halves, STOCHASTIC=stochastic, **tile)
    else:
        narrow = all(x.dtype == torch.bfloat16 for x in delta.parts().values())
        tile = tile_of_blocks(codec, block, _warp(new), BFLOAT16S if narrow and not stochastic else FLOAT32S)
        outputs = (codes, scales.view(torch.int16), fault, *seed_halves)
        _launch(encode_kernel, delta, *outputs, STOCHASTIC=stochastic, **tile)
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
    """As arguments of a launch: blocks of which each thread has `values` bytes of codes, at least one block."""
    slots = 8 // BITS[codec]
    rows = max(1, values * THREADS * slots // block)
    return {"BITS": BITS[codec], "BLOCK": block, "ROWS": rows, "num_warps": THREADS // warp}


def tile_of_values(warp: int) -> dict[str, int]:
    return {"ROWS": FLOAT32S * THREADS // COLUMNS, "COLUMNS": COLUMNS, "num_warps": THREADS // warp}


def _warp(x: Tensor) -> int:
    """Threads of a warp on the device of `x`."""
    return 64 if x.device.type == "cuda" and torch.version.hip is not None else 32


def _signed(word: int) -> int:
    """The same 32 bits as an int32, so that a kernel takes any seed as the same type."""
    return word - (word >> 31 << 32)


def _launch(kernel: object, delta: Delta, *arguments: object, **constants: int) -> None:
    """A launch of any kernel that reads a delta, over tiles of ROWS blocks or rows."""
    tile = constants["ROWS"] * (constants["BLOCK"] if "BLOCK" in constants else constants["COLUMNS"])
    if delta.size > 0:
        with device_of(delta.new):
            kernel[(-(-delta.size // tile),)](*delta, delta.size, *arguments, **constants, **ONE_ROUNDING_EACH)  # type: ignore[index]


def _check_codec(op: str, codec: str) -> None:
    if codec not in CODECS:
        raise ValueError(f"{op}: on a GPU codec must be one of {', '.join(CODECS)}, got {codec!r}")


def _check_operands(delta: Delta) -> None:
    new = delta.new
    hints = {"base": "are they the same parameters?", "residual": "was it made for another model?"}
    for name, x in delta.parts().items():
        if x.device != new.device:
            raise ValueError(f"encode: {name} is on {x.device}, new on {new.device}; move one of them")
        if x.numel() != new.numel():
            raise ValueError(f"encode: {name} has {x.numel()} values, new has {new.numel()}; {hints[name]}")
        if delta.residual is not None and x is not delta.residual and _overlap(x, delta.residual):
            raise ValueError(f"encode: {name} shares memory with residual, which encode overwrites")


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
