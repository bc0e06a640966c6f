"""Every client's last accepted delta, for rules that compare with it: read from its file only when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open

from fgrpo_kernels.codec import Encoded


class LastDeltas(Mapping[str, Encoded]):
    """Clients' last deltas. It never changes; a round makes a new one by `updated`.

    Args:
        kept: by client, the delta itself, or the file of the payload that brought it.
    """

    def __init__(self, kept: Mapping[str, Encoded | Path] | None = None) -> None:
        self._kept = dict(kept or {})

    def __getitem__(self, client: str) -> Encoded:
        kept = self._kept[client]
        return _read(kept) if isinstance(kept, Path) else kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, client: object) -> bool:
        return client in self._kept  # without reading it

    def updated(self, kept: Mapping[str, Encoded | Path]) -> LastDeltas:
        """Return these deltas with some clients' new ones in their place."""
        return LastDeltas({**self._kept, **kept})

    def files(self) -> dict[str, Path]:
        """Return, by client, the files of those that lie in one."""
        return {client: kept for client, kept in self._kept.items() if isinstance(kept, Path)}


def _read(payload: Path) -> Encoded:
    """Read what was checked when it was accepted."""
    with safe_open(payload, "pt") as file:
        told = file.metadata()
        return Encoded(
            file.get_tensor("codes"),
            file.get_tensor("scales"),
            told["codec"],
            int(told["block"]),
            int(told["size"]),
        )
