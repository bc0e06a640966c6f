"""With TRITON_INTERPRET=1 only what takes Triton's way is run; the rest is the same as without."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fgrpo_kernels.jit import INTERPRETED

if INTERPRETED:
    import triton.language as tl
    from triton.runtime import interpreter


def pytest_configure(config: pytest.Config) -> None:
    if INTERPRETED:
        patch_the_language_once_a_launch()
        look_for_overflows(False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INTERPRETED:
        left_out = [item for item in items if item.get_closest_marker("pytorch_path")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("pytorch_path")]


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


@pytest.fixture
def int32_overflows_are_errors():
    """In the interpreter."""
    if INTERPRETED:
        look_for_overflows(True)
    yield
    if INTERPRETED:
        look_for_overflows(False)
