"""The codec's format in plain NumPy, written from csrc/delta_codec.h: what the C++ must equal bit for bit."""

import numpy as np
import torch

BITS = {"int8": 8, "int4": 4, "int2": 2}
CODECS = [*BITS, "bf16", "none"]  # in the order of the enum
PEAK_CODES = {8: [128, 127, 126, 125, 124, 123], 4: [8, 8.5, 9, 7.5, 10, 11], 2: [2.5, 3, 2, 3.5, 4.5, 6]}


def round_up_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = (values.view(np.uint32).astype(np.uint64) + 0xFFFF) >> 16 << 16
    return bits.astype(np.uint32).view(np.float32)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even; finite values that stay finite."""
    bits = values.view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16 << 16).astype(np.uint32).view(np.float32)


def philox(seed: int, count: int) -> np.ndarray:
    """16 bits a value, as uint16: the words of Philox4x32-10 (Salmon et al. 2011) for counters 0, 1, ..., lower halves
    first.
    """
    low = np.uint64(0xFFFFFFFF)
    counters = np.arange(-(-count // 8), dtype=np.uint64)
    c0, c1, c2, c3 = counters & low, counters >> np.uint64(32), np.zeros_like(counters), np.zeros_like(counters)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), product1 & low
        c2, c3 = (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), product0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype("<u4").reshape(-1).view("<u2")[:count]


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """[blocks, block] codes to bytes: byte i of a block holds codes i, i + step, ... from its low bits up."""
    slots = np.split(codes.astype(np.int64) & (2**bits - 1), 8 // bits, axis=1)
    return sum(slot << (bits * i) for i, slot in enumerate(slots)).astype(np.uint8).reshape(-1)


def unpack(data: np.ndarray, bits: int, block: int) -> np.ndarray:
    rows = data.reshape(-1, block * bits // 8).astype(np.int64)
    slots = [rows >> (bits * i) & (2**bits - 1) for i in range(8 // bits)]
    codes = np.concatenate(slots, axis=1)
    return np.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)


def absmax_scales(rows: np.ndarray, bits: int) -> np.ndarray:
    quotient = np.abs(rows).max(axis=1, initial=0).astype(np.float32) / np.float32(2 ** (bits - 1) - 1)
    return np.where(quotient < np.float32(2.0**-126), np.float32(0), round_up_to_bfloat16(quotient))


def mse_scales(rows: np.ndarray, bits: int) -> np.ndarray:
    """Of six scales, the one with the least squared error, summed in float32 in units of the first scale."""
    peaks = np.abs(rows).max(axis=1, initial=0).astype(np.float32)
    sign = np.where((rows == peaks[:, None]).any(axis=1), np.float32(-1), np.float32(1))
    candidates = [sign * round_to_bfloat16(peaks / np.float32(code)) for code in PEAK_CODES[bits]]
    zero = peaks / np.float32(max(PEAK_CODES[bits])) < np.float32(2.0**-126)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverses = [np.float32(1) / candidate for candidate in candidates]
        errors = [
            squared_error(rows, inverse, candidate * inverses[0], inverses[0], bits)
            for candidate, inverse in zip(candidates, inverses, strict=True)
        ]
    best = np.argmin(np.stack(errors), axis=0)  # the first of equals
    scales, chosen = (np.stack(x)[best, np.arange(len(rows))] for x in (candidates, inverses))
    with np.errstate(invalid="ignore"):
        scales = np.where(np.rint(peaks * chosen) > -(2 ** (bits - 1)), np.abs(scales), scales)  # no use for the sign
    return np.where(zero, np.float32(0), scales)


def squared_error(rows: np.ndarray, inverse: np.ndarray, unit: np.ndarray, first: np.ndarray, bits: int) -> np.ndarray:
    codes = np.rint(rows * inverse[:, None]).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    errors = rows * first[:, None] - codes * unit[:, None]
    parts = np.zeros((len(rows), 16), dtype=np.float32)
    for start in range(0, rows.shape[1], 16):
        parts = parts + errors[:, start : start + 16] * errors[:, start : start + 16]
    for half in (8, 4, 2, 1):
        parts = parts[:, :half] + parts[:, half:]
    return parts[:, 0]


def encode(delta: np.ndarray, codec: str, block: int, seed: int | None = None, scale: str = "absmax"):
    """(codes, scales, decoded) of a float32 delta; stochastic where a seed is given."""
    bits = BITS[codec]
    largest = 2 ** (bits - 1) - 1
    padded = np.zeros(-(-len(delta) // block) * block, dtype=np.float32)
    padded[: len(delta)] = delta
    rows = padded.reshape(-1, block)
    scales = absmax_scales(rows, bits) if scale == "absmax" else mse_scales(rows, bits)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    scaled = rows * inverse[:, None]
    if seed is None:
        codes = np.rint(scaled).clip(-largest - 1, largest)
    else:
        odd = (philox(seed, rows.size) | 1).view(np.int16).reshape(rows.shape)
        codes = np.rint(scaled + odd.astype(np.float32) * np.float32(2.0**-16))
    codes = codes.astype(np.int32).astype(np.float32)  # an integer has no negative zero
    decoded = (codes * scales[:, None]).astype(np.float32).reshape(-1)[: len(delta)]
    return pack(codes, bits), scales, decoded


def encode_bfloat16(delta: np.ndarray, seed: int | None = None):
    """(codes, decoded) of codec bf16."""
    if seed is None:
        decoded = round_to_bfloat16(delta)
    else:
        decoded = (delta.view(np.uint32) + philox(seed, len(delta)) >> 16 << 16).view(np.float32)
    return (decoded.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), decoded


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 with one rounding: the sum in float64 rounded to odd, then to float32 (Boldo, Melquiond)."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)  # the product is exact
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    even = total.view(np.int64) % 2 == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def decode(encoded) -> np.ndarray:
    data = encoded.codes.numpy()
    if encoded.codec == "none":
        return data.view(np.float32)
    if encoded.codec == "bf16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    codes = unpack(data, BITS[encoded.codec], encoded.block).astype(np.float32)
    return (codes * encoded.scales.float().numpy()[:, None]).reshape(-1)[: encoded.size]


def aggregate(encodeds, weights) -> np.ndarray:
    """The weighted sum, term by term in the order of the contract. `encodeds` are fgrpo_kernels.codec.Encoded."""

    def order(term):
        encoded, weight = term
        scales = encoded.scales.view(torch.int16).numpy().tobytes()
        bits = int(np.float32(weight).view(np.uint32))
        return CODECS.index(encoded.codec), encoded.block, bits, scales, encoded.codes.numpy().tobytes()

    total = np.full(encodeds[0].size, -0.0, dtype=np.float32)
    for encoded, weight in sorted(zip(encodeds, weights, strict=True), key=order):
        if encoded.codec not in BITS:
            values = decode(encoded)
            total = fused_multiply_add(np.full_like(values, weight), values, total)
            continue
        codes = unpack(encoded.codes.numpy(), BITS[encoded.codec], encoded.block).astype(np.float32)
        factors = (np.float32(weight) * encoded.scales.float().numpy()).repeat(encoded.block)
        total = fused_multiply_add(factors[: encoded.size], codes.reshape(-1)[: encoded.size], total)
    return total
