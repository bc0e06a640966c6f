"""What a finished cell came to, in one small file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo.config import Config

if TYPE_CHECKING:
    from fgrpo.records import Record

_FILE = "result.json"
_OF_NO_MATTER = ("engine", "output_dir", "report_to", "rewards.folder")
OTHER_DEFAULT = "has a default changed since? Delete it, or name another output_dir"


@dataclass(frozen=True)
class Result:
    """A finished run's numbers.

    Attributes:
        accuracy: held-out accuracy by client and round; round 0 is before training.
        weights: share of the update by client and round.
        quarantined: replies that were not used.
        seconds: wall clock of the rounds, evaluation not counted.
        prompts: held out by each client; empty for a result of an earlier release.
        completions: sampled by all clients whose replies came, by round; empty for a result of an earlier release.
        config: the configuration, so that a result is never taken for that of another; empty if it is not known.
    """

    accuracy: Mapping[str, Mapping[int, float]]
    weights: Mapping[str, Mapping[int, float]]
    quarantined: int
    seconds: float
    config: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, int] = field(default_factory=dict)
    completions: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def of(records: Iterable[Record], config: Config) -> Result:
        """Add up the records of a run, or of one for each client."""
        from fgrpo.records import TEST_SET, Evaluation, Report, RoundSummary

        accuracy: dict[str, dict[int, float]] = {}
        weights: dict[str, dict[int, float]] = {}
        prompts: dict[str, int] = {}
        completions: Counter[int] = Counter()
        quarantined, seconds = 0, 0.0
        for record in records:
            if isinstance(record, Evaluation):
                if record.client == TEST_SET:
                    continue  # it is nobody's
                accuracy.setdefault(record.client, {})[record.round] = record.accuracy
                prompts[record.client] = record.prompts
            elif isinstance(record, Report):
                completions[record.round] += record.sequences + record.unrewarded
            elif isinstance(record, RoundSummary):
                for client, weight in record.weights.items():
                    weights.setdefault(client, {})[record.round] = weight
                quarantined += len(record.quarantined)
                seconds += sum(record.seconds.values())
        return Result(accuracy, weights, quarantined, seconds, asdict(config), prompts, dict(completions))

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
        return Result(
            **by_round,
            quarantined=said["quarantined"],
            seconds=said["seconds"],
            config=said.get("config", {}),
            prompts=said.get("prompts", {}),
            completions={int(n): number for n, number in said.get("completions", {}).items()},
        )

    def differs(self, config: Config) -> str | None:
        """Return the first key whose value was another, in words; keys that are new since then do not count."""
        return difference(self.config, json.loads(json.dumps(asdict(config))))


def difference(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str | None:
    """Return the first key that two configurations have both, and whose values differ in what a run comes to."""
    for key in then.keys() & now.keys():
        if f"{prefix}{key}" in _OF_NO_MATTER:
            continue
        if isinstance(then[key], dict) and isinstance(now[key], dict):
            if found := difference(then[key], now[key], f"{prefix}{key}."):
                return found
        elif then[key] != now[key]:
            return f"{prefix}{key} {then[key]}, expected {now[key]}"
    return None
