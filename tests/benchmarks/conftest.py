"""The benchmarks are scripts: their folder is on the path of whoever runs one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
