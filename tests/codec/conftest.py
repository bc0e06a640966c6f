from collections.abc import Iterator

import pytest

from fgrpo_kernels import _C


@pytest.fixture(params=_C.simd_levels())
def simd(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once with each instruction set that this machine has."""
    previous = _C.use_simd(request.param)
    yield request.param
    _C.use_simd(previous)
