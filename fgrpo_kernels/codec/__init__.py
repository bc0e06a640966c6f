"""The delta codec: a flat delta in 8, 4 or 2 bits a parameter, and the weighted mean of many such payloads.

    encoded = encode(new, base, codec="int4", residual=residual)   # a client, once a round; residual is kept
    delta = aggregate([encoded, ...], weights)                     # the server, straight from the codes
    products = gram([encoded, ...])                                # how the clients' deltas lie to each other

Values are quantised in blocks with one bfloat16 scale each; `csrc/delta_codec.h` has the format, byte by byte, and
`docs/codec.md` the reasons and figures. Results depend neither on the number of threads nor on the machine's vector
instructions, sums not on the order of the payloads.

Legend: P parameters (elements of a delta), K clients. Tensors are 1-D, contiguous, on the CPU; a NumPy array does
wherever a tensor does. Where `num_threads` is None, every core that the process may run on is used. `encode` and
`decode` take tensors on a GPU too: what they return is there as well, with the same bits (docs/codec_gpu.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from fgrpo_kernels import _C
from fgrpo_kernels.codec.buffers import (
    buffer_of,
    output_tensor,
    require_flat,
    require_int,
    require_writable,
    thread_count,
)
from fgrpo_kernels.codec.payloads import (
    CODECS,
    Codec,
    Encoded,
    fields_of_all,
    payload_fields,
    require_encoded,
    require_format,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "CODECS",
    "ClientStats",
    "Codec",
    "Encoded",
    "aggregate",
    "aggregate_with_stats",
    "check_codes",
    "decode",
    "encode",
    "gram",
]

Rounding = Literal["nearest", "stochastic"]
Scale = Literal["absmax", "mse"]


@dataclass(frozen=True, eq=False)
class ClientStats:
    """What `aggregate_with_stats` learns of each client, in the order of its list.

    squared_norms: float64 [K], of the decoded deltas, without weights
    dots_with_mean: float64 [K], the products of the decoded deltas with the weighted sum that is returned
    """

    squared_norms: Tensor
    dots_with_mean: Tensor


def encode(
    new: Tensor | np.ndarray,
    base: Tensor | np.ndarray | None = None,
    *,
    codec: Codec = "int4",
    block: int = 64,
    rounding: Rounding = "nearest",
    seed: int = 0,
    scale: Scale = "absmax",
    residual: Tensor | np.ndarray | None = None,
    out: Encoded | None = None,
    num_threads: int | None = None,
) -> Encoded:
    """Quantises the delta `new - base + residual`, each operand optional but the first.

    new, base: float32 or bfloat16 [P]
    residual: float32 [P], what earlier calls rounded off. It is added to the delta and updated in place with what this
        call rounds off (error feedback): start with zeros and pass the same tensor each round.
    codec: "int8", "int4", "int2", "bf16", or "none" (float32 as it is)
    block: values that share a scale, a power of two from 32 to 1024
    rounding: "nearest" (best with a residual) or "stochastic" (unbiased to 2^-16 of a step, for senders that keep no
        residual); "none" has nothing to round
    seed: for stochastic rounding, 0 to 2**64 - 1; the same seed gives the same bits
    scale: "absmax" (no value is off by more than half a step) or "mse" (the least squared error of six scales a block:
        at int4 a fifth less, at int2 half; takes longer, only with "nearest"); "bf16" and "none" have no scales
    out: where to write to, a payload of the same codec, block and size, returned; a new one where None. Writing to
        memory in use is faster.

    Raises ValueError where a value is NaN, infinite or beyond 2**127, naming its index, for wrong sizes or names, and
    for a `residual` or `out` in read-only memory; TypeError for wrong types, dtypes or devices. `residual` is then
    unchanged.

    Example:
        >>> new, base, residual = torch.linspace(0, 1, 100), torch.zeros(100), torch.zeros(100)
        >>> encode(new, base, codec="int4", residual=residual)
        Encoded(codec='int4', block=64, size=100, nbytes=68)
    """
    new = require_flat("encode: new", new, torch.float32, torch.bfloat16)
    if base is not None:
        base = require_flat("encode: base", base, torch.float32, torch.bfloat16)
    if residual is not None:
        residual = require_writable("encode: residual", residual)
    require_format("encode", codec, block)
    if rounding not in get_args(Rounding):
        raise ValueError(f"encode: rounding must be one of {', '.join(get_args(Rounding))}, got {rounding!r}")
    if scale not in get_args(Scale):
        raise ValueError(f"encode: scale must be one of {', '.join(get_args(Scale))}, got {scale!r}")
    if not 0 <= require_int("encode: seed", seed) < 2**64:
        raise ValueError(f"encode: seed must be from 0 to 2**64 - 1, got {seed}")
    for name, operand in {"base": base, "residual": residual}.items():
        if operand is not None and operand.device != new.device:
            raise ValueError(f"encode: {name} is on {operand.device}, new on {new.device}; move one of them")
    out = _encoded_like(out, codec, block, new.numel(), new.device)
    if _on_gpu(new):
        _refuse_threads("encode", num_threads)
        _kernels().encode(new, base, residual, codec, block, rounding, seed, scale, (out.codes, out.scales))
        return out
    _C.encode(
        buffer_of(new),
        None if base is None else buffer_of(base),
        None if residual is None else buffer_of(residual),
        codec,
        block,
        rounding,
        seed,
        scale,
        buffer_of(out.codes),
        buffer_of(out.scales),
        thread_count("encode", num_threads),
    )
    return out


def decode(encoded: Encoded, out: Tensor | None = None, *, num_threads: int | None = None) -> Tensor:
    """The delta that `encoded` stands for: code * scale, exact in float32.

    out: float32 [P] to write to, returned; a new tensor where None. Writing to memory in use is faster.

    Example:
        >>> decode(encode(torch.tensor([0.5, -1.0, 2.0]), codec="int8"))
        tensor([ 0.5078, -0.9998,  1.9995])
    """
    require_encoded("decode: the payload", encoded)
    out = output_tensor("decode", out, encoded.size, encoded.device)
    if _on_gpu(encoded.codes):
        _refuse_threads("decode", num_threads)
        _kernels().decode(encoded.codes, encoded.scales, encoded.codec, encoded.block, out)
        return out
    fields = payload_fields("decode: the payload", encoded)
    _C.decode(fields, buffer_of(out), thread_count("decode", num_threads))
    return out


def aggregate(
    encodeds: Sequence[Encoded],
    weights: Sequence[float] | Tensor,
    out: Tensor | None = None,
    *,
    num_threads: int | None = None,
) -> Tensor:
    """`sum_k weights[k] * decode(encodeds[k])` in float32, in one pass over the codes and without decoded copies.

    encodeds: K payloads of equal size; codecs and blocks may differ
    weights: K finite numbers, rounded to float32; they are used as they are, so divide them by their sum for a mean
    out: float32 [P] to write to, returned; a new tensor where None. Writing to memory in use is faster.

    The order of the list changes no bit: terms are added in the order of their codecs, blocks, weights and bytes.
    Raises ValueError for no payloads, unequal sizes, or weights that are too few, too many or not finite.

    Example:
        >>> a, b = (encode(torch.full((2,), x), codec="bf16") for x in (1.0, 3.0))
        >>> aggregate([a, b], [0.5, 0.5])
        tensor([2., 2.])
    """
    return _aggregate(encodeds, weights, out, None, num_threads)


def aggregate_with_stats(
    encodeds: Sequence[Encoded],
    weights: Sequence[float] | Tensor,
    out: Tensor | None = None,
    *,
    num_threads: int | None = None,
) -> tuple[Tensor, ClientStats]:
    """`aggregate`, the same to the bit, and each client's squared norm and dot product with the result.

    They are summed in float64 while the codes are at hand, the same to the bit for any number of threads and any order
    of the list; only the products of `int8`, `int4` and `int2` with the result are first added up in float32 within a
    block (of 64 values to a relative 4e-7 at worst, and some 1e-10 over a million). Raises as `aggregate` does.

    Example:
        >>> a, b = (encode(torch.full((2,), x), codec="bf16") for x in (1.0, 3.0))
        >>> mean, stats = aggregate_with_stats([a, b], [0.5, 0.5])
        >>> stats.squared_norms, stats.dots_with_mean
        (tensor([ 2., 18.], dtype=torch.float64), tensor([ 4., 12.], dtype=torch.float64))
    """
    stats = torch.empty(len(encodeds), 2, dtype=torch.float64, device="cpu")
    out = _aggregate(encodeds, weights, out, stats, num_threads)
    return out, ClientStats(stats[:, 0].clone(), stats[:, 1].clone())


def _aggregate(
    encodeds: Sequence[Encoded],
    weights: Sequence[float] | Tensor,
    out: Tensor | None,
    stats: Tensor | None,
    num_threads: int | None,
) -> Tensor:
    held = list(encodeds)
    if not held:
        raise ValueError("aggregate: no payloads; did every client fail?")
    weight_list = [float(weight) for weight in (weights.tolist() if isinstance(weights, Tensor) else weights)]
    payloads = fields_of_all("aggregate: payload", held)
    out = output_tensor("aggregate", out, held[0].size)
    stats_view = None if stats is None else buffer_of(stats)
    _C.aggregate(payloads, weight_list, buffer_of(out), stats_view, thread_count("aggregate", num_threads))
    return out


def gram(
    encodeds: Sequence[Encoded], others: Sequence[Encoded] | None = None, *, num_threads: int | None = None
) -> Tensor:
    """The inner products of the decoded deltas, float64 [K, K], straight from the codes: norms, cosines, distances.

    encodeds: K payloads of equal size; codecs and blocks may differ
    others: M payloads of the same size, e.g. last round's; the result is then [K, M], `encodeds` by `others`

    The products of codes are exact integers; sums of them are float64, in a fixed order. An entry depends on its two
    payloads alone: the same bits in any list, and the result without `others` is symmetric.
    Raises ValueError for no payloads, unequal sizes, or a value that is NaN or infinite, naming payload and index.

    Example:
        >>> gram([encode(torch.tensor(delta), codec="bf16") for delta in ([1.0, 0.0], [1.0, 2.0])])
        tensor([[1., 1.],
                [1., 5.]], dtype=torch.float64)
    """
    held, held_others = list(encodeds), None if others is None else list(others)
    payloads = fields_of_all("gram: payload", held)
    columns = None if held_others is None else fields_of_all("gram: other", held_others)
    shape = len(payloads), len(payloads if columns is None else columns)
    products = torch.empty(shape, dtype=torch.float64, device="cpu")
    _C.gram(payloads, columns, buffer_of(products), thread_count("gram", num_threads))
    return products


def check_codes(encoded: Encoded, *, num_threads: int | None = None) -> None:
    """Raises ValueError, naming the first fault, unless `encoded` decodes to finite values and is padded with zeros.

    For payloads from outside: scales finite, not -0, and not so large that a value overflows float32; values of "bf16"
    and "none" at most 2**127. Any code is a valid one, so quantised payloads take no longer than their scales.

    Example:
        >>> check_codes(encode(torch.ones(100)))
    """
    _C.check(payload_fields("check_codes: the payload", encoded), thread_count("check_codes", num_threads))


def _on_gpu(tensor: Tensor) -> bool:
    """Whether the kernels work on it. Not even in Triton's interpreter do they take the CPU's work from C++."""
    return tensor.device.type != "cpu"


def _kernels() -> ModuleType:
    """`fgrpo_kernels.codec.gpu`, imported where a tensor is on a GPU: only there does the codec need Triton."""
    from fgrpo_kernels.codec import gpu

    return gpu


def _refuse_threads(function: str, num_threads: int | None) -> None:
    if num_threads is not None:
        raise ValueError(f"{function}: num_threads is for tensors on the CPU, got {num_threads} and tensors on a GPU")


def _encoded_like(out: Encoded | None, codec: Codec, block: int, size: int, device: torch.device) -> Encoded:
    """`out` if it has this format and size and is on the device, or a new payload that does."""
    if out is None:
        codes = torch.empty(_C.code_bytes(codec, block, size), dtype=torch.uint8, device=device)
        scales = torch.empty(_C.scale_count(codec, block, size), dtype=torch.bfloat16, device=device)
        return Encoded(codes, scales, codec, block, size)
    if not isinstance(out, Encoded):
        raise TypeError(f"encode: out must be an Encoded, got {type(out).__name__}")
    if (out.codec, out.block, out.size) != (codec, block, size):
        raise ValueError(
            f"encode: out holds {out.size} parameters in {out.codec} with block {out.block}, expected {size} in "
            f"{codec} with block {block}"
        )
    if out.device != device:
        raise ValueError(f"encode: out is on {out.device}, new on {device}; move one of them")
    return out
