"""Sizes of the tests that need a device: there are small ones for the made-up device, whose kernels are interpreted."""

import sys
from typing import TypeVar

MADE_UP = "made_up_cuda" in sys.modules
Size = TypeVar("Size")


def fitting(real: Size, made_up: Size) -> Size:
    """The size for the device at hand."""
    return made_up if MADE_UP else real
