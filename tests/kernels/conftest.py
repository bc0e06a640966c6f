"""With TRITON_INTERPRET=1 only what takes Triton's way is run; the rest is the same as without."""

import pytest

from fgrpo_kernels.jit import INTERPRETED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INTERPRETED:
        left_out = [item for item in items if item.get_closest_marker("pytorch_path")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("pytorch_path")]
