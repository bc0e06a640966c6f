"""A delta to codes and back.

FBGEMM and bitsandbytes have a scale a block as we do, piquant one for all values. Bytes that must move: operands and
residual read, codes and residual written.

P parameters
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, Shape, require_close
from fgrpo_kernels.bench.ops import codec_contenders as others
from fgrpo_kernels.bench.ops.codec_contenders import Coded
from fgrpo_kernels.bench.ops.codec_inputs import BLOCK, CHECKED, ERROR_BOUND, QUANTISED, Deltas, bytes_a_value, source
from fgrpo_kernels.codec import decode, encode
from fgrpo_kernels.codec.payloads import Codec

Check = Callable[[Maker, Deltas, Codec], None]
HOW: dict[str, dict[str, str]] = {"nearest": {}, "stochastic": {"rounding": "stochastic"}, "mse": {"scale": "mse"}}
CALLS = 16  # of what rounds by chance, to be judged


def cases(options: Options) -> Iterator[Case]:
    if options.on_gpu:
        raise NotHereError("is for the CPU; device_codec is for a GPU")
    size = options.parameters or 1 << 25
    data = source(size)

    def case(
        name: str,
        codec: Codec,
        contenders: dict[str, Maker],
        check: Check,
        float_bytes: int = 4,
        threads: int | None = None,
        in_readme: str | None = None,
    ) -> Case:
        shape: Shape = {"parameters": size, "codec": codec, "block": BLOCK}
        return Case(
            name=name,
            inputs=lambda: data(clients=2),
            contenders=contenders,
            check=lambda make: check(make, data(min(size, CHECKED), clients=2), codec),
            shape=shape,
            moved=size * (float_bytes + bytes_a_value(codec, BLOCK)),
            work=(size, "parameters"),
            threads=threads,
            in_readme=in_readme,
        )

    for codec in QUANTISED:
        for how in HOW:
            contenders = {
                "fgrpo": ours(codec, how),
                **others.encoders(codec, how),
            }
            named = (
                f"encode {size / 1e6:.1f}M to {codec}, {how}, 1 thread" if codec == "int4" and how != "mse" else None
            )
            right = _check_stochastic if how == "stochastic" else _check
            yield case(f"{codec} {how}, 1 thread", codec, contenders, right, threads=1, in_readme=named)
            if how == "stochastic" and codec in others.PIQUANT and options.threads > 1:
                yield case(f"{codec} {how}, {options.threads} threads", codec, contenders, right)
    for codec in QUANTISED[:2]:
        for how in HOW:
            contenders = {"fgrpo": with_feedback(codec, how)}
            yield case(f"{codec} {how}, base and residual", codec, contenders, _check_feedback, float_bytes=16)
        contenders = {"fgrpo": back(codec), **others.decoders(codec)}
        yield case(f"{codec}, decode", codec, contenders, _check_decode)


def ours(codec: Codec, how: str) -> Maker:
    settings: dict[str, Any] = {"codec": codec, **HOW[how]}

    def make(data: Deltas) -> Run:
        out = encode(data.deltas[0], **settings)
        threads = torch.get_num_threads()
        return lambda: Coded(encode(data.deltas[0], out=out, num_threads=threads, **settings), decode)

    return make


def with_feedback(codec: Codec, how: str) -> Maker:
    """Reads three vectors of float32 and writes one, and the codes."""
    settings: dict[str, Any] = {"codec": codec, **HOW[how]}

    def make(data: Deltas) -> Run:
        new, base = data.deltas
        residual, threads = torch.zeros(data.size), torch.get_num_threads()
        out = encode(torch.zeros(data.size), **settings)
        return lambda: (encode(new, base, out=out, residual=residual, num_threads=threads, **settings), residual)

    return make


def back(codec: Codec) -> Maker:
    def make(data: Deltas) -> Run:
        encoded, out = encode(data.deltas[0], codec=codec), torch.zeros(data.size)
        threads = torch.get_num_threads()
        return lambda: decode(encoded, out, num_threads=threads)

    return make


def _check(make: Maker, data: Deltas, codec: Codec) -> None:
    require_close("values", make(data)().values(), data.deltas[0], ERROR_BOUND[codec])


def _check_stochastic(make: Maker, data: Deltas, codec: Codec) -> None:
    """The same bound times the root of 2: to the upper or the lower code by chance doubles an error's mean square.

    Over several calls, as piquant rounds all values of a call by one random number.
    """
    run = make(data)
    values = torch.cat([run().values() for _ in range(CALLS)])
    require_close("values", values, data.deltas[0].repeat(CALLS), math.sqrt(2) * ERROR_BOUND[codec])


def _check_feedback(make: Maker, data: Deltas, codec: Codec) -> None:
    encoded, residual = make(data)()
    require_close("values and residual", decode(encoded) + residual, data.deltas[0] - data.deltas[1], 1e-6)


def _check_decode(make: Maker, data: Deltas, codec: Codec) -> None:
    require_close("values", make(data)().view(-1), data.deltas[0], ERROR_BOUND[codec])
