"""With TRITON_INTERPRET=1 only what takes Triton's way is run; the rest is the same as without."""

import pytest

from fgrpo_kernels.jit import INTERPRETED

if INTERPRETED:
    import interpreter


def pytest_configure(config: pytest.Config) -> None:
    if INTERPRETED:
        interpreter.adapt()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INTERPRETED:
        left_out = [item for item in items if item.get_closest_marker("pytorch_path")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("pytorch_path")]


@pytest.fixture
def int32_overflows_are_errors():
    """In the interpreter."""
    if INTERPRETED:
        interpreter.look_for_overflows(True)
    yield
    if INTERPRETED:
        interpreter.look_for_overflows(False)
