"""What a node keeps on its own disk from message to message, and from run to run: a model, and its residuals.

FOLDER/model.safetensors                          the global model that came last
FOLDER/residuals/EXPERIMENT/0003/CLIENT.safetensors   what compression lost of a client's deltas up to round 3
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fgrpo.residuals import Residuals, sync

_log = logging.getLogger(__name__)
_NAME = "params"


class Store:
    """A node's folder. A node that is killed at any moment finds in it what it had before, or what it has since."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def model(self) -> Tensor | None:
        """Return the model that is held, float32 [P]."""
        try:
            with safe_open(self._folder / "model.safetensors", "pt") as file:
                return file.get_tensor(_NAME)
        except (OSError, SafetensorError):  # none yet, or a disk that lost it: the server sends it again
            return None

    def hold(self, params_P: Tensor) -> None:
        """Keep a model in the place of the one before."""
        draft = self._folder / f".model-{os.getpid()}"
        save_file({_NAME: params_P}, draft)
        sync(draft)
        os.replace(draft, self._folder / "model.safetensors")
        sync(self._folder)

    def residuals(self, experiment: str, heard: Mapping[str, int]) -> Residuals:
        """Return the residuals from which clients go on: those after the last round that the server took of each.

        What a client kept of a later round belongs to a reply that the server never took; of a client that was never
        heard there are none.
        """
        folder = self._of(experiment)
        found = {}
        for client, number in heard.items():
            if not number:
                continue
            if _file(folder, number, client).is_file():
                found[client] = number
            else:
                _log.warning("client %s: its residual after round %d is gone; it starts from none", client, number)
        return Residuals.found(folder, found)

    def forget(self, experiment: str, client: str, *kept: int) -> None:
        """Remove a client's residuals but for those of some rounds."""
        for path in self._of(experiment).glob(f"*/{client}.safetensors"):
            if int(path.parent.name) not in kept:
                path.unlink(missing_ok=True)
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()

    def _of(self, experiment: str) -> Path:
        return self._folder / "residuals" / experiment


def _file(folder: Path, number: int, client: str) -> Path:
    return folder / f"{number:04d}" / f"{client}.safetensors"
