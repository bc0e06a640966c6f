"""With this folder on PYTHONPATH every Python that starts has a made-up CUDA device: no line changes elsewhere.

PYTHONPATH=tests/made_up_device make gpu PYTHON=python3
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import made_up_cuda

made_up_cuda.install()
made_up_cuda.prepare_fgrpo()
