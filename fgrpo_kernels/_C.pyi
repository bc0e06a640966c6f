# ruff: noqa: N999
# The compiled core (csrc/bindings.cpp). Buffers: float32 "f", bfloat16 bits as uint16 "H", codes uint8 "B",
# statistics float64 "d" [K, 2], products float64 "d" [K, M].
from collections.abc import Sequence
from typing import Any

Buffer = Any
# Addresses and bytes of a payload's codes and scales, codec, block, size.
Payload = tuple[int, int, int, int, str, int, int]

# Address of logits, whether they are bfloat16, address of int64 starts of rows in items, their count, width.
Rows = tuple[int, bool, int, int, int]
# Addresses of logp, entropy, peak, log_sum, float32 each.
Statistics = tuple[int, int, int, int]

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
def decode(payload: Payload, out: Buffer, num_threads: int) -> None: ...
def aggregate(
    payloads: Sequence[Payload],
    weights: Sequence[float],
    out: Buffer,
    stats: Buffer | None,
    num_threads: int,
) -> None: ...
def check(payload: Payload, num_threads: int) -> None: ...
def code_bytes(codec: str, block: int, size: int, /) -> int: ...
def scale_count(codec: str, block: int, size: int, /) -> int: ...
def trimmed_mean(payloads: Sequence[Payload], trim: int, out: Buffer, num_threads: int) -> None: ...
def gram(
    payloads: Sequence[Payload],
    others: Sequence[Payload] | None,
    out: Buffer,
    num_threads: int,
) -> None: ...
def norms(payloads: Sequence[Payload], num_threads: int) -> list[float]: ...
def update_bound(size: int, /) -> int: ...
def encode_update(new: Buffer, base: Buffer, out: Buffer, num_threads: int) -> int: ...
def apply_update(base: Buffer, update: Buffer, out: Buffer, num_threads: int) -> None: ...
def row_statistics(logits: Rows, targets: int, temperature: float, out: Statistics, num_threads: int) -> None: ...
def row_gradients(
    logits: Rows,
    targets: int,
    temperature: float,
    statistics: Statistics,
    grad_logp: int,
    grad_entropy: int,
    out: Rows,
    num_threads: int,
) -> None: ...
def group_advantages(
    rewards: tuple[int, int],  # address of float64, how many
    ids: int,  # address of int64; 0 for groups of one size
    count: int,
    options: tuple[str, bool, float],
    out: tuple[int, int, int, int],  # addresses of advantages, mean and std, float64, and degenerate, bool
) -> None: ...
def available_threads() -> int: ...
def simd_levels() -> list[str]: ...
def use_simd(name: str, /) -> str: ...
