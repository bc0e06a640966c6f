"""Lossless updates of a bfloat16 model: bytes and speed, against zstd on new XOR base.

zstd has its best chance: the difference is made outside what is timed, as it is or ("planes") with the lower bytes of
all values before the upper ones, and cut into a part a thread, which are taken apart in threads too. At level 1; 3, its
usual one, takes longer and saves little.

Weights of std 0.02 rounded to bfloat16. "adam" moves the float32 weights behind them by steps of an Adam-like update,
lr * m / sqrt(v) of about unit size, once or for 50 steps of one sign; the others change a share of the values by one
unit in the last place. Rates are of the model's 2 bytes a parameter.

P parameters
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fgrpo_kernels.bench.case import Case, Maker, NotHereError, Options, Run, WrongResultError
from fgrpo_kernels.downlink import SparseUpdate, apply_update, encode_update

CHECKED = 1 << 18
LEVEL = 1  # zstd's
Change = Callable[[Tensor, torch.Generator], Tensor]  # weights -> the new ones, bfloat16


class Models(NamedTuple):
    base: Tensor  # bfloat16 [P]
    new: Tensor


class Compressed(NamedTuple):
    """By zstd: a part a thread."""

    parts: list[bytes]
    planes: bool

    def read_into(self, room: np.ndarray[Any, Any], pool: ThreadPoolExecutor) -> None:
        """Into uint8 memory in use."""
        import zstandard

        def read(part: bytes, room: np.ndarray[Any, Any]) -> None:
            with zstandard.ZstdDecompressor().stream_reader(part) as reader:
                read = 0
                while count := reader.readinto(room[read:]):
                    read += count

        list(pool.map(read, self.parts, np.array_split(room, len(self.parts))))


ZSTD = {"zstd": False, "zstd, planes": True}  # whether bytes are laid out in planes


def cases(options: Options) -> Iterator[Case]:
    if options.on_gpu:
        raise NotHereError("is for the CPU")
    size = options.parameters or 1 << 24
    encoders: dict[str, Maker] = {"fgrpo": _encode}
    appliers: dict[str, Maker] = {"fgrpo": _apply}
    for name, planes in ZSTD.items():
        encoders[name] = partial(_compress, planes=planes)
        appliers[name] = partial(_decompress, planes=planes)
    for name, change in CHANGES.items():
        inputs = partial(_models, size, change)
        small = partial(_models, min(size, CHECKED), change)
        yield Case(
            name=f"encode, {name}",
            inputs=inputs,
            contenders=encoders,
            check=lambda make, s=small: _check_encode(make, s()),  # type: ignore[misc]
            shape={"parameters": size},
            moved=4 * size,
            work=(2 * size, "bytes"),
            describe=lambda update, n=size: {"bytes": _length(update), "of_raw": _length(update) / (2 * n)},  # type: ignore[misc]
            in_readme=f"update of {size / 1e6:.1f}M bfloat16, {name}" if name == "adam 1e-6, 1 step" else None,
        )
        yield Case(
            name=f"apply, {name}",
            inputs=inputs,
            contenders=appliers,
            check=lambda make, s=small: _check_apply(make, s()),  # type: ignore[misc]
            shape={"parameters": size},
            moved=4 * size,
            work=(2 * size, "bytes"),
        )


def adam(lr: float, steps: int) -> Change:
    def after(weights: Tensor, generator: torch.Generator) -> Tensor:
        update = torch.randn(len(weights), generator=generator).clamp(-3, 3)
        return (weights - lr * steps * update).bfloat16()

    return after


def nudged(share: float) -> Change:
    def after(weights: Tensor, generator: torch.Generator) -> Tensor:
        pattern = weights.bfloat16().view(torch.int16)
        step = 2 * torch.randint(0, 2, (len(weights),), generator=generator, dtype=torch.int16) - 1
        moved = torch.rand(len(weights), generator=generator) < share
        return (pattern + step * moved).view(torch.bfloat16)

    return after


CHANGES = {
    "nothing": nudged(0.0),
    "0.01 % by one unit": nudged(1e-4),
    "1 % by one unit": nudged(1e-2),
    "30 % by one unit": nudged(0.3),
    "all by one unit": nudged(1.0),
    "adam 1e-6, 1 step": adam(1e-6, 1),
    "adam 1e-6, 50 steps": adam(1e-6, 50),
    "adam 1e-4, 1 step": adam(1e-4, 1),
}


def _models(size: int, change: Change) -> Models:
    generator = torch.Generator().manual_seed(0)
    weights = 0.02 * torch.randn(size, generator=generator)
    return Models(weights.bfloat16(), change(weights, generator))


def _encode(models: Models) -> Run:
    threads = torch.get_num_threads()
    return lambda: encode_update(models.new, models.base, num_threads=threads)


def _apply(models: Models) -> Run:
    threads = torch.get_num_threads()
    update, out = encode_update(models.new, models.base, num_threads=threads), torch.zeros_like(models.base)
    return lambda: apply_update(models.base, update, out, num_threads=threads)


def _compress(models: Models, planes: bool) -> Run:
    import zstandard

    parts, pool = np.array_split(_difference(models, planes), torch.get_num_threads()), _pool()
    compressors = [zstandard.ZstdCompressor(level=LEVEL) for _ in parts]

    def compress(compressor: Any, part: Any) -> bytes:
        return bytes(compressor.compress(part))

    return lambda: Compressed(list(pool.map(compress, compressors, parts)), planes)


def _decompress(models: Models, planes: bool) -> Run:
    compressed, base, pool = _compress(models, planes)(), models.base.view(torch.int16), _pool()
    out, room = torch.zeros_like(base), torch.zeros(2, len(base), dtype=torch.uint8)
    pairs = torch.zeros(len(base), 2, dtype=torch.uint8)

    def run() -> Tensor:
        compressed.read_into(room.view(-1).numpy(), pool)
        difference = torch.stack(room.unbind(), 1, out=pairs) if planes else room
        return torch.bitwise_xor(base, difference.view(-1).view(torch.int16), out=out).view(torch.bfloat16)

    return run


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads())


def _difference(models: Models, planes: bool) -> np.ndarray[Any, Any]:
    """uint8 [2 P]."""
    found = (models.new.view(torch.int16) ^ models.base.view(torch.int16)).view(torch.uint8)
    return (found.view(-1, 2).t().reshape(-1) if planes else found).numpy()


def _length(update: SparseUpdate | Compressed) -> int:
    return sum(map(len, update.parts)) if isinstance(update, Compressed) else update.nbytes


def _check_encode(make: Maker, models: Models) -> None:
    update = make(models)()
    if isinstance(update, Compressed):
        difference = _difference(models, update.planes)
        room = np.zeros_like(difference)
        update.read_into(room, _pool())
        if not np.array_equal(room, difference):
            raise WrongResultError("the difference does not come back")
    elif not _same(apply_update(models.base, update), models.new):
        raise WrongResultError("the new model does not come back")


def _check_apply(make: Maker, models: Models) -> None:
    if not _same(make(models)(), models.new):
        raise WrongResultError("the new model does not come back")


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))
