"""The ops that can be measured, one module each, with `cases(options)`: what it is measured on, in order."""

from __future__ import annotations

import importlib

from fgrpo_kernels.bench.case import Case, Options

OPS = (
    "group_advantages",
    "token_logprobs",
    "grpo_loss",
    "linear_grpo_loss",
    "aggregate",
    "encode",
    "gram",
    "robust",
    "downlink",
    "device_codec",
)


def cases(op: str, options: Options) -> list[Case]:
    """The op's cases on the chosen device.

    Raises:
        NotHereError: if this op has none there; the message says what it needs.
    """
    return list(importlib.import_module(f"fgrpo_kernels.bench.ops.{op}").cases(options))
