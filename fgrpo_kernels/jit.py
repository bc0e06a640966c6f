"""Triton where it is installed, and harmless stand-ins where it is not, so that device functions can be defined anywhere.

A module that defines device functions imports `jit`, `tl` and `constexpr` from here, and may then be imported without
Triton. `fgrpo_kernels.dispatch` sees to it that nothing launches a stand-in.
"""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheel for this platform: the PyTorch path serves every device

    class tl:  # noqa: N801  (stands for the module)
        """Only `constexpr`, which the decorated functions' annotations and constants name."""

        @staticmethod
        def constexpr(value: Any) -> Any:
            return value

    def jit(function: Any = None, **_: Any) -> Any:
        """Leaves the function as it is: it is never launched."""
        return function if function is not None else jit

    HAS_TRITON = INTERPRETED = False
else:
    jit = triton.jit
    HAS_TRITON = True
    # With TRITON_INTERPRET=1 (set before the first import of Triton) kernels run on CPU tensors, in Python.
    INTERPRETED = bool(triton.knobs.runtime.interpret)

__all__ = ["HAS_TRITON", "INTERPRETED", "jit", "tl"]
