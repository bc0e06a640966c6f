"""Encoding and decoding a delta on a GPU, against plain PyTorch and an uncompressed copy to the host.

The first results are compared with the C++ codec's, byte for byte. Bytes that move: operands read (twice with a
residual), codes, scales and residual written. "To the host": until the result is in pinned memory, which is what must
happen before a delta can be sent.

P parameters
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fgrpo_kernels import codec as cpp
from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, WrongResultError, compiled, require_close
from fgrpo_kernels.bench.ops.codec_inputs import QUANTISED
from fgrpo_kernels.codec import Rounding
from fgrpo_kernels.codec import gpu as codec_on_gpu
from fgrpo_kernels.codec.gpu import Delta
from fgrpo_kernels.codec.payloads import Codec

CHECKED = 1 << 22
BLOCK, SEED = 64, 7
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic")
CODE_BYTES: dict[Codec, float] = {"int8": 1.0, "int4": 0.5, "int2": 0.25, "none": 4.0}
OPERANDS = {
    "float32": (torch.float32, False, False),
    "float32, base and residual": (torch.float32, True, True),
    "bfloat16, base": (torch.bfloat16, True, False),
    "bfloat16, base and residual": (torch.bfloat16, True, True),
}


def cases(options: Options) -> Iterator[Case]:
    if not options.on_gpu:
        raise NotHereError("needs a GPU")
    size = options.parameters or 1 << 28
    shape = {"parameters": size, "block": BLOCK}
    for codec, code_bytes in CODE_BYTES.items():
        written = code_bytes + (2 / BLOCK if codec != "none" else 0)
        for operands, (dtype, base, residual) in OPERANDS.items():
            read = (1 + base) * dtype.itemsize + 4 * residual
            passes = 2 if residual and codec != "none" else 1
            for rounding in ROUNDINGS if operands == "float32" and codec != "none" else ROUNDINGS[:1]:
                yield Case(
                    name=f"encode {codec} {rounding}, {operands}",
                    inputs=lambda o=operands: _delta(o, size, options.device),  # type: ignore[misc]
                    contenders=_encoders(codec, rounding, operands),
                    check=lambda make, o=operands, c=codec, r=rounding: _check_encode(make, o, c, r, options.device),  # type: ignore[misc]
                    shape=shape,
                    moved=size * (passes * read + written + 4 * residual),
                    work=(size, "parameters"),
                )
        yield Case(
            name=f"decode {codec}",
            inputs=lambda: _delta("float32", size, options.device),
            contenders={"fgrpo": _decoder(codec)},
            check=lambda make, c=codec: _check_decode(make, c, options.device),  # type: ignore[misc]
            shape=shape,
            moved=size * (written + 4),
            work=(size, "parameters"),
        )
    for codec in QUANTISED[:2]:
        yield Case(
            name=f"encode {codec}, to the host",
            inputs=lambda: _delta("float32", size, options.device),
            contenders={"fgrpo": _to_host(lambda d, c=codec: _encode(d, c)), "float32": _to_host(lambda d: (d.new,))},  # type: ignore[misc]
            check=lambda make: None,  # what is copied has been checked
            shape=shape,
            work=(size, "parameters"),
        )


def _delta(operands: str, size: int, device: str) -> Delta:
    dtype, base, residual = OPERANDS[operands]
    generator = torch.Generator(device).manual_seed(0)

    def randn() -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    return Delta(randn(), randn() if base else None, torch.zeros(size, device=device) if residual else None)


def _encode(delta: Delta, codec: Codec, rounding: Rounding = "nearest") -> tuple[Tensor, Tensor]:
    return codec_on_gpu.encode(*delta, codec, BLOCK, rounding, SEED)


def _encoders(codec: Codec, rounding: Rounding, operands: str) -> dict[str, Maker]:
    found: dict[str, Maker] = {"fgrpo": lambda delta: lambda: _encode(delta, codec, rounding)}
    if codec == "int8" and rounding == "nearest" and operands == "float32":
        found |= {
            "eager": lambda delta: lambda: _plain_int8(delta.new),
            "compile": _compiled_int8,
            "bitsandbytes": _bitsandbytes_int8,
        }
    return found


def _plain_int8(new: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes without a kernel: int8 codes and a scale a block."""
    rows = new.view(-1, BLOCK)
    scales = rows.abs().amax(1, keepdim=True) / 127
    return (rows / scales).round().to(torch.int8), scales.to(torch.bfloat16)


def _compiled_int8(delta: Delta) -> Run:
    encode = compiled(_plain_int8)
    return lambda: encode(delta.new)


def _bitsandbytes_int8(delta: Delta) -> Run:
    from bitsandbytes.functional import quantize_blockwise

    return lambda: quantize_blockwise(delta.new, blocksize=BLOCK)


def _check_encode(make: Maker, operands: str, codec: Codec, rounding: Rounding, device: str) -> None:
    """Ours: the C++ codec's bytes. Of others: codes that give the values back."""
    delta = _delta(operands, CHECKED, device)
    on_host = Delta(*[None if x is None else x.cpu() for x in delta])  # type: ignore[arg-type]
    codes, scales = make(delta)()
    if not (isinstance(codes, Tensor) and isinstance(scales, Tensor)):
        from bitsandbytes.functional import dequantize_blockwise

        require_close("values", dequantize_blockwise(codes, scales), delta.new, 0.02)
        return
    if codes.dtype == torch.int8:
        require_close("values", codes * scales.float(), delta.new.view(-1, BLOCK), 0.02)
        return
    expected = cpp.encode(
        on_host.new, on_host.base, codec=codec, block=BLOCK, rounding=rounding, seed=SEED, residual=on_host.residual
    )
    pairs = [("codes", codes, expected.codes), ("scales", scales, expected.scales)]
    if delta.residual is not None and on_host.residual is not None:
        pairs.append(("the residual", delta.residual, on_host.residual))
    for name, ours, exact in pairs:
        if not torch.equal(ours.cpu(), exact):
            raise WrongResultError(f"{name} differ from the C++ codec's")


def _decoder(codec: Codec) -> Maker:
    def make(delta: Delta) -> Run:
        codes, scales = _encode(delta, codec)
        out = torch.empty(delta.size, device=delta.new.device)

        def run() -> Tensor:
            codec_on_gpu.decode(codes, scales, codec, BLOCK, out)
            return out

        return run

    return make


def _check_decode(make: Maker, codec: Codec, device: str) -> None:
    delta = _delta("float32", CHECKED, device)
    expected = cpp.decode(cpp.encode(delta.new.cpu(), codec=codec, block=BLOCK))
    if not torch.equal(make(delta)().cpu(), expected):
        raise WrongResultError("values differ from the C++ codec's")


def _to_host(parts_of: Callable[[Delta], tuple[Tensor, ...]]) -> Maker:
    def make(delta: Delta) -> Run:
        pinned = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in parts_of(delta)]

        def run() -> None:
            for target, source in zip(pinned, parts_of(delta), strict=True):
                target.copy_(source, non_blocking=True)

        return run

    return make
