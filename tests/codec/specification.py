"""The codec's format in plain NumPy, written from csrc/delta_codec.h: what the C++ must equal bit for bit."""

import numpy as np

BITS = {"int8": 8, "int4": 4, "int2": 2}


def round_up_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = (values.view(np.uint32).astype(np.uint64) + 0xFFFF) >> 16 << 16
    return bits.astype(np.uint32).view(np.float32)


def philox(seed: int, count: int) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011): word i % 4 of counter i // 4, the upper 24 bits as a number in [0, 1)."""
    low = np.uint64(0xFFFFFFFF)
    counters = np.arange(-(-count // 4), dtype=np.uint64)
    c0, c1, c2, c3 = counters & low, counters >> np.uint64(32), np.zeros_like(counters), np.zeros_like(counters)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), product1 & low
        c2, c3 = (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), product0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    words = np.stack([c0, c1, c2, c3], axis=1).reshape(-1)[:count]
    return (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """[blocks, block] codes to bytes: byte i of a block holds codes i, i + step, ... from its low bits up."""
    slots = np.split(codes.astype(np.int64) & (2**bits - 1), 8 // bits, axis=1)
    return sum(slot << (bits * i) for i, slot in enumerate(slots)).astype(np.uint8).reshape(-1)


def unpack(data: np.ndarray, bits: int, block: int) -> np.ndarray:
    rows = data.reshape(-1, block * bits // 8).astype(np.int64)
    slots = [rows >> (bits * i) & (2**bits - 1) for i in range(8 // bits)]
    codes = np.concatenate(slots, axis=1)
    return np.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)


def encode(delta: np.ndarray, codec: str, block: int, seed: int | None = None):
    """(codes, scales, decoded) of a float32 delta; stochastic where a seed is given."""
    largest = 2 ** (BITS[codec] - 1) - 1
    padded = np.zeros(-(-len(delta) // block) * block, dtype=np.float32)
    padded[: len(delta)] = delta
    rows = padded.reshape(-1, block)
    quotient = np.abs(rows).max(axis=1, initial=0).astype(np.float32) / np.float32(largest)
    scales = np.where(quotient < np.float32(2.0**-126), np.float32(0), round_up_to_bfloat16(quotient))
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    scaled = rows * inverse[:, None]
    if seed is None:
        codes = np.rint(scaled)
    else:
        codes = np.floor(scaled + philox(seed, rows.size).reshape(rows.shape)).clip(-largest, largest)
    codes = codes.astype(np.int32).astype(np.float32)  # an integer has no negative zero
    decoded = (codes * scales[:, None]).astype(np.float32).reshape(-1)[: len(delta)]
    return pack(codes, BITS[codec]), scales, decoded


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 with one rounding: the sum in float64 rounded to odd, then to float32 (Boldo, Melquiond)."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)  # the product is exact
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    even = total.view(np.int64) % 2 == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def aggregate(encodeds, weights) -> np.ndarray:
    """The weighted sum, term by term. `encodeds` are fgrpo_kernels.codec.Encoded."""
    total = np.full(encodeds[0].size, -0.0, dtype=np.float32)
    for encoded, weight in zip(encodeds, weights, strict=True):
        if encoded.codec == "none":
            values = encoded.codes.numpy().view(np.float32)
            total = fused_multiply_add(np.full_like(values, weight), values, total)
            continue
        codes = unpack(encoded.codes.numpy(), BITS[encoded.codec], encoded.block).astype(np.float32)
        factors = (np.float32(weight) * encoded.scales.float().numpy()).repeat(encoded.block)
        total = fused_multiply_add(factors[: encoded.size], codes.reshape(-1)[: encoded.size], total)
    return total
