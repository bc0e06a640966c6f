"""Robust means over codes against the same over decoded tensors in torch.

Torch's side stacks the decoded deltas, K * P float32, and calls torch.sort, torch.median or norm and product; the time
of decoding counts for it too, as ours starts from the codes.

K clients   P parameters
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, require_close
from fgrpo_kernels.bench.ops.codec_inputs import source
from fgrpo_kernels.codec import Encoded, decode, encode
from fgrpo_kernels.robust import clipped_mean, median, trimmed_mean

BY_CLIENTS = (8, 16, 64)
CHECKED = 1 << 12
Mean = Callable[[list[Encoded]], Tensor]


def cases(options: Options) -> Iterator[Case]:
    if options.on_gpu:
        raise NotHereError("is for the CPU")
    size = options.parameters or 1 << 19
    data = source(size)
    ways: dict[str, tuple[Callable[[list[Encoded], Tensor], Tensor], Mean]] = {
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

            named = f"{name} of {number} deltas of {size / 1e6:.1f}M in int4"
            yield Case(
                name=f"{name}, {number} clients",
                inputs=payloads,
                contenders={"fgrpo": _maker(ours), "eager": lambda encodeds, f=theirs: partial(f, encodeds)},  # type: ignore[misc]
                check=lambda make, p=payloads, f=theirs: _check(make, p(min(size, CHECKED)), f),  # type: ignore[misc]
                shape={"clients": number, "parameters": size, "codec": "int4"},
                work=(number * size, "parameters"),
                in_readme=named if (name, clients) == ("trimmed mean", 16) else None,
            )


def _maker(way: Callable[[list[Encoded], Tensor], Tensor]) -> Maker:
    def make(encodeds: list[Encoded]) -> Run:
        return partial(way, encodeds, torch.zeros(encodeds[0].size))

    return make


def _clipped(encodeds: list[Encoded], out: Tensor) -> Tensor:
    weights = [1 / len(encodeds)] * len(encodeds)
    return clipped_mean(encodeds, weights, _bound(out), out, num_threads=torch.get_num_threads()).mean


def _clipped_in_torch(encodeds: list[Encoded]) -> Tensor:
    values = _stacked(encodeds)
    factors = (_bound(values[0]) / torch.linalg.vector_norm(values, dim=1)).clamp(max=1) / len(encodeds)
    return torch.mv(values.t(), factors)


def _trimmed(encodeds: list[Encoded], out: Tensor) -> Tensor:
    return trimmed_mean(encodeds, len(encodeds) // 4, out, num_threads=torch.get_num_threads())


def _trimmed_in_torch(encodeds: list[Encoded]) -> Tensor:
    trim = len(encodeds) // 4
    return _stacked(encodeds).sort(0).values[trim : len(encodeds) - trim].mean(0)


def _median(encodeds: list[Encoded], out: Tensor) -> Tensor:
    return median(encodeds, out, num_threads=torch.get_num_threads())


def _median_in_torch(encodeds: list[Encoded]) -> Tensor:
    return _stacked(encodeds).median(0).values


def _bound(values: Tensor) -> float:
    """Below the length of a delta of standard normal values, so that every client is clipped."""
    return float(0.9 * values.numel() ** 0.5)


def _stacked(encodeds: list[Encoded]) -> Tensor:
    return torch.stack([decode(encoded, num_threads=torch.get_num_threads()) for encoded in encodeds])


def _check(make: Maker, encodeds: list[Encoded], exact: Mean) -> None:
    require_close("mean", make(encodeds)(), exact(encodeds), 1e-4)
