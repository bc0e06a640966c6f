"""The deltas' inner products straight from the codes, against decoding them all and `D @ D.T` in torch.

Torch's side has it good: the float32 matrix [K, P] that it decodes into is memory already in use. As one product the
rest is slow with MKL's code for AVX-512; "in blocks" of columns, one batched product whose results are added up, it is
several times as fast. `aggregate`, which reads the same codes once, and `norms` show what the geometry adds to a round.

K clients   P parameters
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, WrongResultError
from fgrpo_kernels.bench.ops.codec_inputs import CHECKED, CODE_BYTES, QUANTISED, source
from fgrpo_kernels.codec import Encoded, aggregate, decode, encode, gram
from fgrpo_kernels.codec.payloads import Codec
from fgrpo_kernels.robust import norms

CLIENTS = 8
COLUMNS = 1 << 10  # of a block: up to 16 times as many take as long or longer
ERROR_BOUND = 1e-2  # of the lengths' product: what float32 sums leave in torch


def cases(options: Options) -> Iterator[Case]:
    if options.on_gpu:
        raise NotHereError("is for the CPU")
    size = options.parameters or 1 << 24
    data = source(size)
    for codec in CODE_BYTES:
        for clients in (CLIENTS, 4 * CLIENTS):
            length = size * CLIENTS // clients

            def payloads(length: int = length, clients: int = clients, codec: Codec = codec) -> list[Encoded]:
                return [encode(delta, codec=codec) for delta in data(length, clients).deltas]

            yield Case(
                name=f"{codec}, {clients} clients",
                inputs=payloads,
                contenders={
                    "fgrpo": _ours,
                    "eager": partial(_decode_and_multiply, product=_product),
                    "eager, in blocks": partial(_decode_and_multiply, product=_product_in_blocks),
                },
                check=lambda make, p=payloads, n=length: _check(make, p(min(n, CHECKED))),  # type: ignore[misc]
                shape={"clients": clients, "parameters": length, "codec": codec},
                work=(clients * length, "parameters"),
                in_readme=f"inner products of {clients} deltas of {length / 1e6:.1f}M in {codec}"
                if (codec, clients) == ("int4", CLIENTS)
                else None,
            )
    for codec in QUANTISED[:2]:
        yield Case(
            name=f"{codec}, beside one pass",
            inputs=lambda c=codec: [encode(delta, codec=c) for delta in data().deltas],  # type: ignore[misc]
            contenders={"fgrpo": _ours, "fgrpo, norms": _norms, "fgrpo, aggregate": _aggregate},
            check=lambda make: None,  # each has its own elsewhere
            shape={"clients": CLIENTS, "parameters": size, "codec": codec},
            work=(CLIENTS * size, "parameters"),
        )


def _ours(encodeds: list[Encoded]) -> Run:
    threads = torch.get_num_threads()
    return lambda: gram(encodeds, num_threads=threads)


def _norms(encodeds: list[Encoded]) -> Run:
    threads = torch.get_num_threads()
    return lambda: norms(encodeds, num_threads=threads)


def _aggregate(encodeds: list[Encoded]) -> Run:
    out, weights = torch.zeros(encodeds[0].size), [1 / len(encodeds)] * len(encodeds)
    threads = torch.get_num_threads()
    return lambda: aggregate(encodeds, weights, out, num_threads=threads)


def _product(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _product_in_blocks(rows: Tensor) -> Tensor:
    count = rows.shape[1] // COLUMNS
    whole, rest = rows.split([count * COLUMNS, rows.shape[1] - count * COLUMNS], 1)
    blocks = whole.unflatten(1, (count, COLUMNS)).transpose(0, 1)
    return torch.bmm(blocks, blocks.mT).sum(0) + rest @ rest.T


def _decode_and_multiply(encodeds: list[Encoded], product: Callable[[Tensor], Tensor]) -> Run:
    rows, threads = torch.zeros(len(encodeds), encodeds[0].size), torch.get_num_threads()

    def run() -> Tensor:
        for row, encoded in zip(rows, encodeds, strict=True):
            decode(encoded, row, num_threads=threads)
        return product(rows)

    return run


def _check(make: Maker, encodeds: list[Encoded]) -> None:
    rows = torch.stack([decode(encoded) for encoded in encodeds]).double()
    exact = rows @ rows.T
    lengths = exact.diagonal().sqrt()
    error = float(((make(encodeds)() - exact).abs() / lengths.outer(lengths)).max())
    if not error < ERROR_BOUND:
        raise WrongResultError(f"products: error {error:.1e} of the lengths, expected below {ERROR_BOUND:.0e}")
