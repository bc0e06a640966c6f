"""A payload of the delta codec, and what the functions that read payloads hand to C++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fgrpo_kernels import _C
from fgrpo_kernels.codec.buffers import require_flat, require_int

Codec = Literal["int8", "int4", "int2", "bf16", "none"]
CODECS: tuple[Codec, ...] = get_args(Codec)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A delta as `encode` writes it.

    codes: uint8 [bytes]; `size` codes of 8, 4 or 2 bits, padded to whole blocks (codec "bf16": bfloat16, 2 bytes each;
        "none": float32, 4 bytes each)
    scales: bfloat16 [ceil(size / block)]; the value of a code is code * scale ("bf16" and "none": [0])
    codec: "int8", "int4", "int2", "bf16" or "none"
    block: values that share a scale, a power of two from 32 to 1024
    size: P

    Construction checks that these agree, at no cost that grows with P; `check_codes` reads the bytes themselves.
    Raises TypeError for a wrong type, dtype or device, ValueError for a wrong shape, codec, block or size.
    """

    codes: Tensor
    scales: Tensor
    codec: Codec
    block: int
    size: int

    def __post_init__(self) -> None:
        require_format("Encoded", self.codec, self.block)
        if require_int("Encoded: size", self.size) < 0:
            raise ValueError(f"Encoded: size must not be negative, got {self.size}")
        expected = {
            "codes": (torch.uint8, _C.code_bytes(self.codec, self.block, self.size)),
            "scales": (torch.bfloat16, _C.scale_count(self.codec, self.block, self.size)),
        }
        for name, (dtype, length) in expected.items():
            tensor = require_flat(f"Encoded: {name}", getattr(self, name), dtype)
            object.__setattr__(self, name, tensor)  # where it was a NumPy array
            if tensor.numel() != length:
                raise ValueError(
                    f"Encoded: {name} has {tensor.numel()} elements, but {self.size} parameters in {self.codec} with "
                    f"block {self.block} need {length}"
                )
        if self.codes.device != self.scales.device:
            raise ValueError(f"Encoded: codes are on {self.codes.device}, scales on {self.scales.device}")

    def __repr__(self) -> str:
        """A line: the tensors, which may be of gigabytes, stay out of it."""
        where = "" if self.device.type == "cpu" else f", device={self.device}"
        return f"Encoded(codec={self.codec!r}, block={self.block}, size={self.size}, nbytes={self.nbytes}{where})"

    @property
    def device(self) -> torch.device:
        """Where codes and scales are."""
        return self.codes.device

    def cpu(self) -> Encoded:
        """The payload on the CPU, as `aggregate` and `check_codes` take it; itself if it is there."""
        if self.device.type == "cpu":
            return self
        return Encoded(self.codes.cpu(), self.scales.cpu(), self.codec, self.block, self.size)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales: what travels, but for the container's header."""
        return self.codes.numel() + 2 * self.scales.numel()


Fields = tuple[int, int, int, int, str, int, int]


def payload_fields(where: str, encoded: Encoded) -> Fields:
    """Address and bytes of its codes and of its scales, codec, block and size: what C++ reads while it is held."""
    require_encoded(where, encoded)
    codes, scales = encoded.codes, encoded.scales
    if not codes.is_cpu:
        raise TypeError(f"{where} must be on the CPU, got {encoded.device}; call .cpu() first")
    places = (codes.data_ptr(), codes.nbytes, scales.data_ptr(), scales.nbytes)
    return (*places, encoded.codec, encoded.block, encoded.size)


def fields_of_all(kind: str, encodeds: list[Encoded]) -> list[Fields]:
    """`payload_fields` of each. A list, so that payloads which a sequence makes as they are asked for are held."""
    return [payload_fields(f"{kind} {k}", encoded) for k, encoded in enumerate(encodeds)]


def require_encoded(where: str, encoded: object) -> None:
    if not isinstance(encoded, Encoded):
        raise TypeError(f"{where} must be an Encoded, got {type(encoded).__name__}")


def require_format(where: str, codec: object, block: object) -> None:
    if codec not in CODECS:
        raise ValueError(f"{where}: codec must be one of {', '.join(CODECS)}, got {codec!r}")
    size = require_int(f"{where}: block", block)
    if not 32 <= size <= 1024 or size & (size - 1):
        raise ValueError(f"{where}: block must be a power of two from 32 to 1024, got {size}")
