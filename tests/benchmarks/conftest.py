"""The benchmarks are scripts: their folder is on the path of whoever runs one. `counts` is beside the tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parent)]
