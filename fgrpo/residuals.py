"""What compression lost of every client's deltas so far, in files: a client that takes no part costs a path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    path: Path
    name: str

    def load(self) -> Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(self.name)


class Residuals(Mapping[str, Tensor]):
    """Each client's error-feedback residual, float32 [P]. It never changes; a round makes a new one by `updated`.

    Args:
        kept: by client, the residual itself or where it lies; one that is stored is read whenever it is asked for.
        folder: where new ones go, as `<round>/<client>.safetensors`; None keeps them in memory.
    """

    def __init__(self, kept: Mapping[str, Tensor | StoredTensor] | None = None, folder: Path | None = None) -> None:
        self._kept, self._folder = dict(kept or {}), folder

    def __getitem__(self, client: str) -> Tensor:
        kept = self._kept[client]
        return kept.load() if isinstance(kept, StoredTensor) else kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, client: object) -> bool:
        return client in self._kept  # without reading it

    def of(self, client: str) -> Residuals:
        """Return what one client needs: its own residual, and the place for the next one."""
        return Residuals({client: self._kept[client]} if client in self._kept else {}, self._folder)

    def keep(self, client: str, residual_P: Tensor, round_number: int) -> Tensor | StoredTensor:
        """Put a client's new residual where the next round will find it, and return what `updated` takes of it."""
        if self._folder is None:
            return residual_P
        path = _file(self._folder, round_number, client)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({_NAME: residual_P}, path)
        for written in (path, path.parent, self._folder):
            sync(written)
        return StoredTensor(path, _NAME)

    def updated(self, kept: Mapping[str, Tensor | StoredTensor]) -> Residuals:
        """Return these residuals with some clients' new ones in their place."""
        return Residuals({**self._kept, **kept}, self._folder)

    def within(self, folder: Path, round_number: int) -> Residuals:
        """Return the same residuals, all in a folder; those that lie elsewhere are written there under a round."""
        there = Residuals(folder=folder)
        return there.updated(
            {
                client: kept if _round(kept, folder) is not None else there.keep(client, self[client], round_number)
                for client, kept in self._kept.items()
            }
        )

    def rounds(self) -> dict[str, int]:
        """Return, by client, the round under which its residual lies in the folder."""
        assert self._folder is not None
        rounds = {client: _round(kept, self._folder) for client, kept in self._kept.items()}
        return {client: number for client, number in rounds.items() if number is not None}

    @staticmethod
    def found(folder: Path, rounds: Mapping[str, int]) -> Residuals:
        """Return the residuals that `rounds` described."""
        kept = {client: StoredTensor(_file(folder, at, client), _NAME) for client, at in rounds.items()}
        return Residuals(kept, folder)

    def files(self) -> set[Path]:
        """Return the files in which residuals lie."""
        return {kept.path for kept in self._kept.values() if isinstance(kept, StoredTensor)}


_NAME = "residual"


def _file(folder: Path, round_number: int, client: str) -> Path:
    return folder / f"{round_number:04d}" / f"{client}.safetensors"


def _round(kept: Tensor | StoredTensor, folder: Path) -> int | None:
    """Return the round of a residual in the folder; None if it is not there."""
    if not isinstance(kept, StoredTensor) or kept.path.parent.parent != folder:
        return None
    return int(kept.path.parent.name)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
