"""Robust means over codes against the same over decoded tensors in torch and NumPy.

The others decode into a float32 matrix [K, P] that is memory already in use; that counts for them too, as ours starts
from the codes. `eager` calls torch.sort, torch.median or norm and product; `numpy` sorts rows of a block of columns
turned about, which it is fastest at, in as many threads; `compile` is a sorting network written out, for the compiler
to fuse: of 64 rows it is no faster than NumPy, and takes a quarter of a minute to compile.

K clients   P parameters
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, compiled, require_close
from fgrpo_kernels.bench.ops.codec_inputs import source
from fgrpo_kernels.codec import Encoded, decode, encode
from fgrpo_kernels.robust import clipped_mean, median, trimmed_mean

BY_CLIENTS = (8, 16, 64)
CHECKED = 1 << 12
COMPILED = 16  # clients at most
COLUMNS = 1 << 14  # that NumPy sorts at a time
Ours = Callable[[list[Encoded], Tensor], Tensor]  # payloads, out -> mean [P]
Mean = Callable[[Tensor], Tensor]  # rows [K, P] -> mean [P]


def cases(options: Options) -> Iterator[Case]:
    if options.on_gpu:
        raise NotHereError("is for the CPU")
    size = options.parameters or 1 << 19
    data = source(size)
    ways: dict[str, tuple[Ours, Mean]] = {
        "clipped mean": (_clipped, _clipped_in_torch),
        "trimmed mean": (_trimmed, _trimmed_in_torch),
        "median": (_median, _median_in_torch),
    }
    for name, (ours, theirs) in ways.items():
        for clients in BY_CLIENTS:
            number = clients - 1 if name == "median" else clients  # torch.median of an even number is the lower of two

            def payloads(length: int = size, number: int = number) -> list[Encoded]:
                drawn = data(length, number).deltas
                # Stochastic rounding by different seeds: otherwise every eighth client would send the same.
                return [encode(delta, rounding="stochastic", seed=k) for k, delta in enumerate(drawn)]

            contenders: dict[str, Maker] = {
                "fgrpo": _maker(ours),
                "eager": partial(_decoded, prepare=partial(_as_it_is, mean=theirs)),
            }
            if name != "clipped mean":
                trim = number // 2 if name == "median" else _trim(number)
                contenders["numpy"] = partial(_decoded, prepare=partial(_sorted_in_numpy, trim=trim))
                if number <= COMPILED:
                    network = partial(_by_network, trim=trim)
                    contenders["compile"] = partial(_decoded, prepare=partial(_compiled, mean=network))
            named = f"{name} of {number} deltas of {size / 1e6:.1f}M in int4"
            yield Case(
                name=f"{name}, {number} clients",
                inputs=payloads,
                contenders=contenders,
                check=lambda make, p=payloads, f=theirs: _check(make, p(min(size, CHECKED)), f),  # type: ignore[misc]
                shape={"clients": number, "parameters": size, "codec": "int4"},
                work=(number * size, "parameters"),
                in_readme=named if (name, clients) == ("trimmed mean", 16) else None,
            )


def _maker(way: Ours) -> Maker:
    def make(encodeds: list[Encoded]) -> Run:
        return partial(way, encodeds, torch.zeros(encodeds[0].size))

    return make


def _decoded(encodeds: list[Encoded], prepare: Callable[[Tensor], Mean]) -> Run:
    """Of rows decoded anew each time; `prepare` is given where they will be."""
    rows, threads = torch.zeros(len(encodeds), encodeds[0].size), torch.get_num_threads()
    mean = prepare(rows)

    def run() -> Tensor:
        for row, encoded in zip(rows, encodeds, strict=True):
            decode(encoded, row, num_threads=threads)
        return mean(rows)

    return run


def _as_it_is(rows: Tensor, mean: Mean) -> Mean:
    return mean


def _compiled(rows: Tensor, mean: Mean) -> Mean:
    return compiled(mean)


def _clipped(encodeds: list[Encoded], out: Tensor) -> Tensor:
    weights = [1 / len(encodeds)] * len(encodeds)
    return clipped_mean(encodeds, weights, _bound(out), out, num_threads=torch.get_num_threads()).mean


def _clipped_in_torch(rows: Tensor) -> Tensor:
    factors = (_bound(rows[0]) / torch.linalg.vector_norm(rows, dim=1)).clamp(max=1) / len(rows)
    return torch.mv(rows.t(), factors)


def _trimmed(encodeds: list[Encoded], out: Tensor) -> Tensor:
    return trimmed_mean(encodeds, _trim(len(encodeds)), out, num_threads=torch.get_num_threads())


def _trimmed_in_torch(rows: Tensor) -> Tensor:
    trim = _trim(len(rows))
    return rows.sort(0).values[trim : len(rows) - trim].mean(0)


def _median(encodeds: list[Encoded], out: Tensor) -> Tensor:
    return median(encodeds, out, num_threads=torch.get_num_threads())


def _median_in_torch(rows: Tensor) -> Tensor:
    return rows.median(0).values


def _sorted_in_numpy(rows: Tensor, trim: int) -> Mean:
    out, threads = torch.zeros(rows.shape[1]), ThreadPoolExecutor(torch.get_num_threads())

    def block(first: int) -> None:
        columns: np.ndarray[Any, Any] = np.ascontiguousarray(rows.numpy()[:, first : first + COLUMNS].T)
        columns.sort(1)
        columns[:, trim : len(rows) - trim].mean(1, out=out.numpy()[first : first + COLUMNS])

    def mean(rows: Tensor) -> Tensor:
        list(threads.map(block, range(0, rows.shape[1], COLUMNS)))
        return out

    return mean


def _by_network(rows: Tensor, trim: int) -> Tensor:
    values = list(rows)
    for low, high in _odd_even_merge_sort(len(values)):
        a, b = values[low], values[high]
        values[low], values[high] = torch.minimum(a, b), torch.maximum(a, b)
    kept = values[trim : len(values) - trim]
    return sum(kept[1:], start=kept[0]) / len(kept)


def _odd_even_merge_sort(number: int) -> Sequence[tuple[int, int]]:
    """Batcher's comparators (Knuth, volume 3, 5.2.2 M), in their order."""
    found = []
    merged = 1
    while merged < number:
        step = merged
        while step >= 1:
            for start in range(step % merged, number - step, 2 * step):
                for low in range(start, min(start + step, number - step)):
                    if low // (2 * merged) == (low + step) // (2 * merged):
                        found.append((low, low + step))
            step //= 2
        merged *= 2
    return found


def _trim(number: int) -> int:
    return number // 4


def _bound(values: Tensor) -> float:
    """Below the length of a delta of standard normal values, so that every client is clipped."""
    return float(0.9 * values.numel() ** 0.5)


def _check(make: Maker, encodeds: list[Encoded], exact: Mean) -> None:
    require_close("mean", make(encodeds)(), exact(torch.stack([decode(encoded) for encoded in encodeds])), 1e-4)
