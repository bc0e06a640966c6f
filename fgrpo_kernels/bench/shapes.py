"""Real models' heads."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fgrpo_kernels.bench.case import Options


class Head(NamedTuple):
    """H and V: a weight is [vocabulary, hidden]."""

    hidden: int
    vocabulary: int


MODELS = {
    "smollm2": Head(576, 49_152),
    "qwen2.5-0.5b": Head(896, 151_936),
    "qwen3-0.6b": Head(1024, 151_936),
    "qwen3-8b": Head(4096, 151_936),
    "llama-3.2-1b": Head(2048, 128_256),
    "llama-3.1-8b": Head(4096, 128_256),
    "gemma-3-270m": Head(640, 262_144),
    "gemma-3-4b": Head(2560, 262_208),
    "mistral-7b-v0.3": Head(4096, 32_768),
}


def head_of(options: Options) -> Head:
    """The chosen model's; without a choice one that suits the device."""
    return MODELS[options.model or ("qwen3-8b" if options.on_gpu else "smollm2")]


def dtype_of(options: Options) -> torch.dtype:
    """The chosen one, or what models are trained in on the device."""
    return options.dtype or (torch.bfloat16 if options.on_gpu else torch.float32)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
