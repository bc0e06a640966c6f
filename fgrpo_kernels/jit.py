"""Triton where it is installed, and harmless stand-ins where it is not, so that device functions may stand anywhere.

A module that defines device functions imports `jit` and `tl` from here, and may then be imported without Triton.
`fgrpo_kernels.dispatch` sees to it that nothing launches a stand-in.
"""

from __future__ import annotations

from typing import Any

jit: Any
tl: Any
try:
    import triton
    import triton.language
except ImportError:  # no wheel for this platform: the PyTorch path serves every device
    HAS_TRITON = INTERPRETED = False

    class _Language:
        """The one member of `triton.language` that a module uses when it is imported."""

        @staticmethod
        def constexpr(value: Any) -> Any:
            return value

    def _jit(function: Any = None, **_: Any) -> Any:
        """Leaves the function as it is: it is never launched."""
        return _jit if function is None else function

    jit, tl = _jit, _Language
else:
    jit, tl = triton.jit, triton.language
    HAS_TRITON = True
    # With TRITON_INTERPRET=1 (set before the first import of Triton) kernels run on CPU tensors, in Python.
    INTERPRETED = bool(triton.knobs.runtime.interpret)

# Of every launch: multiply-adds may be fused, which from version 3.10 on is no longer Triton's default.
FUSED = {"enable_fp_fusion": True}

__all__ = ["FUSED", "HAS_TRITON", "INTERPRETED", "jit", "tl"]
