"""The format of updates in plain Python, written from csrc/sparse_delta.h: what its bytes mean."""

import struct
from collections.abc import Iterator

BLOCK = 1 << 14
WORD = 2**64 - 1


def mixed(x: int) -> int:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def block_hash(values: list[int]) -> int:
    streams = [mixed(i * 0x9E3779B97F4A7C15 & WORD) for i in range(1, 33)]
    padded = struct.pack(f"<{len(values)}H", *values)
    padded += bytes(-len(padded) % 256)
    for at, (word,) in enumerate(struct.iter_unpack("<Q", padded)):
        state = streams[at % 32] ^ word
        streams[at % 32] = (state & 0xFFFFFFFF) * 0xFFFEB81B + (state >> 32)
    result = len(values)
    for i, state in enumerate(streams):
        result = mixed(result ^ state) + i & WORD
    return result


def model_hash(values: list[int]) -> int:
    total = len(values)
    for block, start in enumerate(range(0, len(values), BLOCK)):
        x = block_hash(values[start : start + BLOCK]) + (block + 1) * 0x9E3779B97F4A7C15 & WORD
        x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCD & WORD
        total += x ^ (x >> 33)
    return total & WORD


def bits_of(data: bytes) -> Iterator[int]:
    return (byte >> i & 1 for byte in data for i in range(8))


def take(bits: Iterator[int], order: int) -> int:
    zeros = 0
    while next(bits) == 0:
        zeros += 1
    below = zeros + order
    return (1 << below) + sum(next(bits) << i for i in range(below)) - (1 << order)


def stepped(pattern: int, step: int) -> int:
    place = pattern ^ 0xFFFF if pattern >> 15 else pattern | 0x8000
    distance = step // 2 + 1
    place = place + (-distance if step % 2 else distance) & 0xFFFF
    return place & 0x7FFF if place >> 15 else place ^ 0xFFFF


def read_block(data: bytes, values: list[int]) -> list[int]:
    values = list(values)
    if data[0] == 2:
        return list(struct.unpack(f"<{len(values)}H", data[1:]))
    gap_order, step_order = data[1] & 15, data[1] >> 4
    if data[0] == 1:
        end = 2 + -(-len(values) // 8)
        marks, bits = bits_of(data[2:end]), bits_of(data[end:])
        for at in (at for at, mark in enumerate(marks) if mark):
            values[at] = stepped(values[at], take(bits, step_order))
        return values
    bits, at = bits_of(data[4:]), -1
    for _ in range(int.from_bytes(data[2:4], "little") + 1):
        at += 1 + take(bits, gap_order)
        values[at] = stepped(values[at], take(bits, step_order))
    return values


def read(data: bytes, base: list[int]) -> list[int]:
    """The result's patterns; an AssertionError where the header does not say what follows."""
    base = [pattern & 0xFFFF for pattern in base]
    size, base_hash, result_hash = struct.unpack("<QQQ", data[8:32])
    assert (data[:8], size, base_hash) == (b"FGSU\1\0\0\0", len(base), model_hash(base))
    starts = range(0, size, BLOCK)
    lengths = struct.unpack_from(f"<{len(starts)}H", data, 32)
    result, at = [], 32 + 2 * len(starts)
    for start, length in zip(starts, lengths, strict=True):
        values = base[start : start + BLOCK]
        result += read_block(data[at : at + length], values) if length else values
        at += length
    assert data[at:] == bytes(8)
    assert result_hash == model_hash(result)
    return result
