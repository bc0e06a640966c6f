"""The weighted mean of clients' deltas, straight from their codes.

Rates are payloads times parameters a second, of 8 clients unless a case says otherwise. Bytes that must move: payloads
once, the result once.

K clients   P parameters
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, Shape, require_close
from fgrpo_kernels.bench.ops import codec_contenders as others
from fgrpo_kernels.bench.ops.codec_inputs import (
    BLOCK,
    CHECKED,
    CLIENTS,
    ERROR_BOUND,
    FLOATS,
    QUANTISED,
    Deltas,
    bytes_a_value,
    source,
)
from fgrpo_kernels.codec import Encoded, aggregate, aggregate_with_stats, encode
from fgrpo_kernels.codec.payloads import Codec

BY_CLIENTS = (1, 2, 4, 8, 16, 32)
IN_CACHE = 1 << 18  # parameters
Make = Callable[..., Deltas]  # by length and clients


def cases(options: Options) -> Iterator[Case]:
    if options.on_gpu:
        raise NotHereError("is for the CPU")
    size = options.parameters or 1 << 25
    data = source(size)
    for codec in QUANTISED:
        for block in (BLOCK, 256):
            contenders = {
                "fgrpo": ours(codec, block),
                **others.means(codec, block),
            }
            named = (
                f"mean of {CLIENTS} deltas of {size / 1e6:.1f}M in {codec}"
                if block == BLOCK and codec != "int2"
                else None
            )
            yield case(f"{codec}, block {block}", data, size, codec, contenders, block=block, in_readme=named)
    for codec in QUANTISED[:2]:
        contenders = {"fgrpo": ours(codec), **others.fbgemm_means(codec, BLOCK)}
        yield case(
            f"{codec}, in cache, 1 thread", data, min(size, IN_CACHE), codec, contenders, threads=1, limited=False
        )
        contenders = {"fgrpo": ours(codec, how=_with_stats), "fgrpo, without stats": ours(codec)}
        yield case(f"{codec}, with stats", data, size, codec, contenders)
    for codec in FLOATS:
        contenders = {
            "fgrpo": ours(codec),
            "eager": others.eager_mean,
            "eager, one product": others.eager_product,
        }
        yield case(codec, data, size, codec, contenders)
    equal = lambda length=size, clients=CLIENTS: _the_first_only(data(length, clients))  # noqa: E731
    yield case("int4, equal payloads", equal, size, "int4", {"fgrpo": ours("int4")})
    yield from _scaling(data, max(BLOCK, size // 4), options.threads)


def case(
    name: str,
    data: Make,
    size: int,
    codec: Codec,
    contenders: dict[str, Maker],
    *,
    clients: int = CLIENTS,
    block: int = BLOCK,
    threads: int | None = None,
    limited: bool = True,
    in_readme: str | None = None,
) -> Case:
    shape: Shape = {"clients": clients, "parameters": size, "codec": codec, "block": block}
    return Case(
        name=name,
        inputs=lambda: data(size, clients),
        contenders=contenders,
        check=lambda make: _check(make, data(min(size, CHECKED), clients), codec),
        shape=shape,
        moved=size * (clients * bytes_a_value(codec, block) + 4) if limited else None,
        work=(clients * size, "parameters"),
        threads=threads,
        in_readme=in_readme,
    )


def ours(codec: Codec, block: int = BLOCK, *, how: Callable[..., Tensor] = aggregate) -> Maker:
    def make(data: Deltas) -> Run:
        encodeds = [encode(delta, codec=codec, block=block) for delta in data.deltas]
        out = torch.zeros(data.size)
        return partial(how, encodeds, data.weights, out, num_threads=torch.get_num_threads())

    return make


def _scaling(data: Make, size: int, threads: int) -> Iterator[Case]:
    """By the number of clients, and by the number of threads."""
    fewer = [2**i for i in range(threads.bit_length()) if 2**i < threads]
    for codec in QUANTISED:
        for clients, number in [(clients, threads) for clients in BY_CLIENTS] + [(CLIENTS, n) for n in fewer]:
            name = f"{codec}, {clients} clients, {number} threads"
            yield case(name, data, size, codec, {"fgrpo": ours(codec)}, clients=clients, threads=number)


def _the_first_only(data: Deltas) -> Deltas:
    """Clients that send the same bytes, where the order of the terms is hardest to find."""
    return data._replace(deltas=data.deltas[:1] * len(data.deltas))


def _with_stats(encodeds: list[Encoded], weights: Tensor, out: Tensor | None, *, num_threads: int) -> Tensor:
    return aggregate_with_stats(encodeds, weights, out, num_threads=num_threads)[0]


def _check(make: Maker, data: Deltas, codec: Codec) -> None:
    require_close("mean", others.as_vector(make(data)()), others.eager_mean(data)(), ERROR_BOUND[codec])
