"""TRL, or a skip of the test module that imports this where TRL is missing or not the version that is followed here."""

import pytest

trl = pytest.importorskip("trl", reason="compares with TRL: install fgrpo[trl]")
if not trl.__version__.startswith("1.16."):
    pytest.skip(f"what is compared is TRL 1.16, this is {trl.__version__}", allow_module_level=True)
