"""Encoding and decoding a delta of 2^28 parameters on the device, against plain PyTorch and an uncompressed copy.

    python benchmarks/bench_triton_codec.py

The first 4 million results are compared with the C++ codec, byte for byte, before anything is timed. Bytes moved:
operands read (twice with a residual), codes, scales and residual written. "To the host": until the result is in pinned
memory, which is what must happen before a delta can be sent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from common import Record, attempt, copy_bandwidth, measure, write
from torch import Tensor

from fgrpo_kernels import codec as cpp
from fgrpo_kernels.codec import gpu as delta_codec
from fgrpo_kernels.codec.gpu import Delta

P = 1 << 28
CHECKED = 1 << 22
BLOCK = 64
SEED = 7
CONTEXT = {"parameters": P, "block": BLOCK}


def encode(delta: Delta, codec: str, rounding: str = "nearest") -> tuple[Tensor, Tensor]:
    return delta_codec.encode(*delta, codec, BLOCK, rounding, SEED)


def require_same_bits(delta: Delta, codec: str, rounding: str) -> None:
    start = Delta(*[None if x is None else x[:CHECKED].to("cpu", copy=True) for x in delta])  # type: ignore[arg-type]
    expected = cpp.encode(
        start.new, start.base, codec=codec, block=BLOCK, rounding=rounding, seed=SEED, residual=start.residual
    )
    codes, scales = encode(delta, codec, rounding)
    assert torch.equal(codes[: expected.codes.numel()].cpu(), expected.codes), "codes differ from the C++ codec's"
    assert torch.equal(scales[: expected.scales.numel()].cpu(), expected.scales), "scales differ from the C++ codec's"
    if delta.residual is not None and start.residual is not None:
        assert torch.equal(delta.residual[:CHECKED].cpu(), start.residual), "the residual differs from the C++ codec's"


def encode_record(name: str, delta: Delta, codec: str, rounding: str, bandwidth: float) -> Record:
    require_same_bits(delta, codec, rounding)
    read = sum(x.nbytes for x in delta.parts().values())
    moved = read + sum(x.nbytes for x in encode(delta, codec, rounding))
    if delta.residual is not None:
        moved += delta.residual.nbytes + (read if codec != "none" else 0)
    return measure(name, lambda: encode(delta, codec, rounding), moved=moved, bandwidth=bandwidth, **CONTEXT)


def decode_record(name: str, new: Tensor, codec: str, bandwidth: float) -> Record:
    codes, scales = encode(Delta(new, None, None), codec)
    out = torch.empty(P, device="cuda")
    delta_codec.decode(codes, scales, codec, BLOCK, out)
    expected = cpp.decode(cpp.encode(new[:CHECKED].cpu(), codec=codec, block=BLOCK))
    assert torch.equal(out[:CHECKED].cpu(), expected), "values differ from the C++ codec's"
    moved = codes.nbytes + scales.nbytes + out.nbytes
    run = lambda: delta_codec.decode(codes, scales, codec, BLOCK, out)  # noqa: E731
    return measure(name, run, moved=moved, bandwidth=bandwidth, **CONTEXT)


def plain_int8(new: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes without a kernel: int8 codes and a scale a block."""
    rows = new.view(-1, BLOCK)
    scales = rows.abs().amax(1, keepdim=True) / 127
    return (rows / scales).round().to(torch.int8), scales.to(torch.bfloat16)


def to_host(name: str, make: Callable[[], tuple[Tensor, ...]]) -> Record:
    pinned = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in make()]

    def run() -> None:
        for target, source in zip(pinned, make(), strict=True):
            target.copy_(source, non_blocking=True)

    return measure(name, run, **CONTEXT)


def bench(bandwidth: float) -> list[Record]:
    new, base, residual = (torch.randn(P, device="cuda") for _ in range(3))
    residual.zero_()
    plain = Delta(new, None, None)
    operands = {
        "fp32": plain,
        "fp32, base and residual": Delta(new, base, residual),
        "bf16, base": Delta(new.bfloat16(), base.bfloat16(), None),
        "bf16, base and residual": Delta(new.bfloat16(), base.bfloat16(), residual),
    }
    records = []
    for codec in ("int8", "int4", "int2", "none"):
        for rest, delta in operands.items():
            for rounding in ("nearest", "stochastic") if rest == "fp32" and codec != "none" else ("nearest",):
                name = f"encode {codec} {rounding}, {rest}"
                records.append(attempt(name, partial(encode_record, name, delta, codec, rounding, bandwidth)))
        name = f"decode {codec}"
        records.append(attempt(name, partial(decode_record, name, new, codec, bandwidth)))

    for name, run in {"plain PyTorch int8": plain_int8, "torch.compile int8": torch.compile(plain_int8)}.items():
        records.append(attempt(name, partial(measure, name, partial(run, new), **CONTEXT)))
    records.append(to_host("float32 to the host", lambda: (new,)))
    for codec in ("int8", "int4"):
        records.append(to_host(f"encode {codec}, to the host", partial(encode, plain, codec)))
    return records


if __name__ == "__main__":
    limit = copy_bandwidth()
    print(write("triton_codec", bench(limit), copy_bytes_per_second=limit))
