"""How others average deltas, quantise them and give them back, on a CPU.

FBGEMM, inside torch, averages by embedding bags: one row a block, one bag a block over the clients, weights by sample.
bitsandbytes has no mean of codes: deltas are dequantised and added. Flower averages float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgrpo_kernels.bench.case import Maker, Run
from fgrpo_kernels.bench.ops.codec_inputs import BLOCK, Deltas

FBGEMM = {"int8": "byte", "int4": "4bit"}
PIQUANT = {"int8": torch.uint8, "int4": torch.quint4x2}
BITSANDBYTES = ("int8", "int4")  # in blocks, with a table of values: dynamic for 8 bits, nf4


class Coded(NamedTuple):
    """What a contender's encoder made, and its own way back."""

    payload: Any
    give_back: Callable[[Any], Tensor]

    def values(self) -> Tensor:
        """float32 [P]."""
        return self.give_back(self.payload).view(-1)


def means(codec: str, block: int) -> dict[str, Maker]:
    """Those of payloads as small, and of float32 payloads."""
    found = fbgemm_means(codec, block)
    if block == BLOCK:
        if codec in BITSANDBYTES:
            found["bitsandbytes"] = lambda data: _bitsandbytes_mean(data, codec)
        found["eager, float32"] = eager_mean
        found["eager, float32, one product"] = eager_product
        found["flower, float32"] = _flower_mean
    return found


def encoders(codec: str, how: str) -> dict[str, Maker]:
    """Those that round in the same way."""
    found: dict[str, Maker] = {}
    if how == "nearest" and codec in FBGEMM:
        found["fbgemm"] = lambda data: _fbgemm_encode(data.deltas[0], codec)
    if how == "nearest" and codec in BITSANDBYTES:
        found["bitsandbytes"] = lambda data: _bitsandbytes_encode(data.deltas[0], codec)
    if how != "mse" and codec in PIQUANT:
        found["piquant"] = lambda data: _piquant_encode(data.deltas[0], codec, how)
    return found


def decoders(codec: str) -> dict[str, Maker]:
    encoders = {"fbgemm": _fbgemm_encode, "bitsandbytes": _bitsandbytes_encode}

    def decoder(encode: Callable[[Tensor, str], Callable[[], Coded]]) -> Maker:
        def make(data: Deltas) -> Run:
            coded = encode(data.deltas[0], codec)()
            return lambda: coded.give_back(coded.payload)

        return make

    return {name: decoder(encode) for name, encode in encoders.items()}


def eager_mean(data: Deltas) -> Run:
    """Of float32 deltas, into memory in use."""
    out = torch.zeros(data.size)

    def run() -> Tensor:
        out.zero_()
        for weight, delta in zip(data.weights.tolist(), data.deltas, strict=True):
            out.add_(delta, alpha=weight)
        return out

    return run


def eager_product(data: Deltas) -> Run:
    """The same where the deltas are rows of one matrix from the start."""
    rows, out = torch.stack(data.deltas), torch.zeros(data.size)
    return lambda: torch.mv(rows.t(), data.weights, out=out)


def fbgemm_means(codec: str, block: int) -> dict[str, Maker]:
    return {"fbgemm": lambda data: _fbgemm_mean(data, codec, block)} if codec in FBGEMM else {}


def as_vector(mean: Any) -> Tensor:
    """float32 [P], from whatever a contender's mean is."""
    if isinstance(mean, Tensor):
        return mean.view(-1)
    return torch.from_numpy(mean["delta"].numpy().copy())


def _fbgemm_mean(data: Deltas, codec: str, block: int) -> Run:
    kind = f"embedding_bag_{FBGEMM[codec]}"
    prepack, bag = (getattr(torch.ops.quantized, f"{kind}_{end}") for end in ("prepack", "rowwise_offsets"))
    rows = prepack(torch.cat([delta.view(-1, block) for delta in data.deltas]))
    clients, bags = len(data.deltas), data.size // block
    indices = torch.arange(clients * bags, dtype=torch.int32).view(clients, bags).t().reshape(-1).contiguous()
    offsets = torch.arange(0, clients * bags, clients, dtype=torch.int32)
    per_sample = data.weights.repeat(bags)
    return lambda: bag(rows, indices, offsets, mode=0, per_sample_weights=per_sample)


def _fbgemm_encode(delta: Tensor, codec: str) -> Callable[[], Coded]:
    kind = f"embedding_bag_{FBGEMM[codec]}"
    prepack, unpack = (getattr(torch.ops.quantized, f"{kind}_{end}") for end in ("prepack", "unpack"))
    return lambda: Coded(prepack(delta.view(-1, BLOCK)), unpack)


def _bitsandbytes_encode(delta: Tensor, codec: str) -> Callable[[], Coded]:
    from bitsandbytes import functional

    if codec == "int8":
        return lambda: Coded(
            functional.quantize_blockwise(delta, blocksize=BLOCK), lambda codes: functional.dequantize_blockwise(*codes)
        )
    return lambda: Coded(
        functional.quantize_4bit(delta, blocksize=BLOCK, quant_type="nf4"),
        lambda codes: functional.dequantize_4bit(*codes),
    )


def _piquant_encode(delta: Tensor, codec: str, how: str) -> Callable[[], Coded]:
    import piquant
    import piquant.torch

    context, dtype = piquant.Context(torch.get_num_threads()), PIQUANT[codec]
    scale, zero = piquant.torch.compute_quant_params(delta, dtype=dtype, ctx=context)
    settings = {"scale": scale, "zero_point": zero, "ctx": context}

    def give_back(codes: Tensor) -> Tensor:
        values: Tensor = piquant.torch.dequantize(codes, dtype=torch.float32, **settings)
        return values

    return lambda: Coded(piquant.torch.quantize(delta, dtype=dtype, round_mode=how, **settings), give_back)


def _bitsandbytes_mean(data: Deltas, codec: str) -> Run:
    coded = [_bitsandbytes_encode(delta, codec)() for delta in data.deltas]
    out = torch.zeros(data.size)

    def run() -> Tensor:
        out.zero_()
        for weight, one in zip(data.weights.tolist(), coded, strict=True):
            out.add_(one.values(), alpha=weight)
        return out

    return run


def _flower_mean(data: Deltas) -> Run:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    records = [
        RecordDict(
            {"arrays": ArrayRecord({"delta": Array(delta.numpy())}), "metrics": MetricRecord({"weight": float(weight)})}
        )
        for delta, weight in zip(data.deltas, data.weights, strict=True)
    ]
    return lambda: aggregate_arrayrecords(records, "weight")
