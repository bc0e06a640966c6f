"""What other libraries print beside our own display."""

from __future__ import annotations

import os
import warnings

# Read by libraries when they are imported, which happens later; whoever sets one outside keeps their value.
_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "0",  # threads that wait by spinning make two runs on the same cores 20 times slower than one
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # our own display speaks, and no library beside it
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def be_quiet() -> None:
    """Have libraries that are imported later, in this process and those that it starts, leave the terminal to us."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
