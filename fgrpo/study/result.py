"""What a finished cell came to, in one small file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgrpo.records import Record

_FILE = "result.json"


@dataclass(frozen=True)
class Result:
    """A finished run's numbers.

    Attributes:
        accuracy: held-out accuracy by client and round; round 0 is before training.
        weights: share of the update by client and round.
        quarantined: replies that were not used.
        seconds: wall clock of the rounds, evaluation not counted.
    """

    accuracy: Mapping[str, Mapping[int, float]]
    weights: Mapping[str, Mapping[int, float]]
    quarantined: int
    seconds: float

    @staticmethod
    def of(records: Iterable[Record]) -> Result:
        """Add up the records of a run, or of one for each client."""
        from fgrpo.records import Evaluation, RoundSummary

        accuracy: dict[str, dict[int, float]] = {}
        weights: dict[str, dict[int, float]] = {}
        quarantined, seconds = 0, 0.0
        for record in records:
            if isinstance(record, Evaluation):
                accuracy.setdefault(record.client, {})[record.round] = record.accuracy
            elif isinstance(record, RoundSummary):
                for client, weight in record.weights.items():
                    weights.setdefault(client, {})[record.round] = weight
                quarantined += len(record.quarantined)
                seconds += sum(record.seconds.values())
        return Result(accuracy, weights, quarantined, seconds)

    def write(self, folder: Path) -> None:
        """Put it into a cell's folder, whole or not at all; it says that the cell is finished."""
        draft = folder / f".{_FILE}"
        draft.write_text(json.dumps(asdict(self)))
        os.replace(draft, folder / _FILE)

    @staticmethod
    def read(folder: Path) -> Result | None:
        """Return what a cell came to; None if it is not finished."""
        try:
            said = json.loads((folder / _FILE).read_text())
        except FileNotFoundError:
            return None
        by_round = {
            name: {client: {int(n): value for n, value in rounds.items()} for client, rounds in said[name].items()}
            for name in ("accuracy", "weights")
        }
        return Result(**by_round, quarantined=said["quarantined"], seconds=said["seconds"])
