# ruff: noqa: N999
# The compiled codec (csrc/bindings.cpp). Buffers: float32 "f", bfloat16 bits as uint16 "H", codes uint8 "B",
# statistics float64 "d" [K, 2].
from collections.abc import Sequence
from typing import Any

Buffer = Any

def encode(
    new: Buffer,
    base: Buffer | None,
    residual: Buffer | None,
    codec: str,
    block: int,
    rounding: str,
    seed: int,
    scale: str,
    codes: Buffer,
    scales: Buffer,
    num_threads: int,
) -> None: ...
def decode(codes: Buffer, scales: Buffer, codec: str, block: int, size: int, out: Buffer, num_threads: int) -> None: ...
def aggregate(
    payloads: Sequence[tuple[Buffer, Buffer, str, int, int]],
    weights: Sequence[float],
    out: Buffer,
    stats: Buffer | None,
    num_threads: int,
) -> None: ...
def check(codes: Buffer, scales: Buffer, codec: str, block: int, size: int, num_threads: int) -> None: ...
def code_bytes(codec: str, block: int, size: int, /) -> int: ...
def scale_count(codec: str, block: int, size: int, /) -> int: ...
def prefer_large_pages(memory: Buffer) -> None: ...
def available_threads() -> int: ...
def simd_levels() -> list[str]: ...
def use_simd(name: str, /) -> str: ...
