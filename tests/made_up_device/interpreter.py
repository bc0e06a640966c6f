"""What the tests change of Triton's interpreter: how it rounds, and what costs time to no end."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


@cache
def adapt() -> None:
    """Make all these changes, once, for as long as the process runs."""
    round_to_nearest()
    spread_comparisons_as_they_are()
    loop_to_numbers_in_blocks_of_one()
    patch_the_language_once_a_launch()
    look_for_overflows(False)


def round_to_nearest() -> None:
    """From float32 to bfloat16 and back as hardware does it; the interpreter cuts the digits off."""
    convert = interpreter._convert_float

    def as_hardware(x: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return bfloat16_bits(x)
        if (source, target) == (tl.bfloat16, tl.float32):
            return x.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return convert(x, source, target, rounding_mode)

    interpreter._convert_float = as_hardware


def bfloat16_bits(x: Any) -> Any:
    """The nearest bfloat16 of float32s, the even one of two, as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (np.where(np.isnan(x), bits | np.uint32(0x400000), rounded) >> np.uint32(16)).astype(np.uint16)


def spread_comparisons_as_they_are() -> None:
    """A block filled with the result of a scalar comparison is one of bools, not of what was compared: a mask."""
    builder = interpreter.InterpreterBuilder
    splat = builder.create_splat

    def as_it_is(self: Any, block_type: Any, x: Any) -> Any:
        is_bool = x.data.dtype == np.bool_
        return splat(self, block_type, interpreter.TensorHandle(x.data, tl.int1) if is_bool else x)

    builder.create_splat = as_it_is


def loop_to_numbers_in_blocks_of_one() -> None:
    """Triton 3.6 hands the bounds of a loop to NumPy as arrays of one element, which NumPy 2.4 takes for no number."""
    patch = interpreter._patch_lang_tensor

    def with_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = with_index


def patch_the_language_once_a_launch() -> None:
    """Triton's interpreter wraps all of triton.language again at every call of a device function, which takes half of
    these tests' time and changes nothing: a launch has wrapped it. It does so for the modules that the kernel's file
    imports; device functions of Triton's own need triton.language.core besides.
    """
    patch = interpreter._patch_lang
    whole_language = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    interpreter._patch_lang = lambda _: patch(whole_language)
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)


def look_for_overflows(on: bool) -> None:
    """At every sum and product of int32: a quarter of the time, and few tests have numbers that large."""
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=on)
