"""Several runs side by side: what differs in their configurations, and what each came to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from statistics import fmean
from typing import Any

from fgrpo.config import Config
from fgrpo.records import TEST_SET
from fgrpo.run_folder import RunFolder
from fgrpo.settings import read_config
from fgrpo.show.summary import MOST_SHOWN, RunSummary
from fgrpo.show.tables import TextTable
from fgrpo.show.text import byte_size, percent, points, seconds
from fgrpo.show.verdict import verdict

_OF_NO_MATTER = ("output_dir", "report_to", "rewards.folder")  # where things lie, not what a run is


@dataclass(frozen=True)
class Compared:
    """A run among others.

    Attributes:
        name: its folder.
    """

    name: str
    config: Config
    summary: RunSummary

    @staticmethod
    def of(folder: RunFolder) -> Compared:
        return Compared(str(folder.path), read_config(folder.config_file), RunSummary.of(folder.records()))


def differences(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """Return the keys, such as `train.lr`, that are not the same in all runs, with each run's value; None for no value.

    A section that some runs lack is one value.
    """
    found = _different([run.config for run in runs], "")
    return {key: values for key, values in found if key not in _OF_NO_MATTER}


def comparison_tables(runs: Sequence[Compared]) -> list[TextTable]:
    """Return what differs, what each run came to, and what each client got."""
    names = [run.name for run in runs]
    differing = [(key, *map(written, values)) for key, values in differences(runs).items()]
    of_runs = [_run_row(run) for run in runs]
    clients = list(dict.fromkeys(client for run in runs for client in run.summary.shown()))
    of_clients = [(client, *(_client_cell(run.summary, client) for run in runs)) for client in clients[:MOST_SHOWN]]
    more = len({client for run in runs for client in run.summary.clients}) - len(of_clients)
    return [
        TextTable(
            "What differs in the configurations",
            ("key", *names),
            tuple(differing),
            numbers_from=1 + len(runs),
            note="" if differing or len(runs) < 2 else "nothing",
        ),
        TextTable(
            "What the runs came to: mean held-out accuracy before and after",
            ("run", "accuracy", "points gained", "test set", "rounds", "uplink", "rounds took", "verdict"),
            tuple(of_runs),
            numbers_to=-1,
        ),
        TextTable(
            "Held-out accuracy after training, and points gained, by client",
            ("client", *names),
            tuple(of_clients),
            note=f"and {more} more clients" if more > 0 else "",
        ),
    ]


def client_numbers(summary: RunSummary, client: str) -> dict[str, float | None]:
    """Return what one client, or the run's test set, got, in numbers; None for what was not measured."""
    evaluations = summary.test_set if client == TEST_SET else summary.evaluations.get(client, {})
    reports = [report for _, report in sorted(summary.reports.get(client, {}).items())]
    shares = [round_.weights.get(client, 0.0) for round_ in summary.rounds]
    first, last = evaluations.get(0), evaluations.get(max(evaluations, default=0) or -1)
    return {
        "accuracy_before": first.accuracy if first else None,
        "accuracy_after": last.accuracy if last else None,
        "score_before": first.score if first else None,
        "score_after": last.score if last else None,
        "reward_first": reports[0].reward_mean if reports else None,
        "reward_last": reports[-1].reward_mean if reports else None,
        "weight_mean": fmean(shares) if reports else None,
        "sequences": sum(report.sequences for report in reports),
        "rounds_missed": summary.times_quarantined()[client],
    }


def evaluated_names(summary: RunSummary) -> list[str]:
    return [*summary.clients, *([TEST_SET] if summary.test_set else [])]


def _run_row(run: Compared) -> tuple[str, ...]:
    summary = run.summary
    before, after = summary.mean_accuracy() or (None, None)
    _, test_set = summary.test_accuracy()
    return (
        run.name,
        f"{percent(before)} → {percent(after)}",
        points(before, after),
        percent(test_set),
        str(len(summary.rounds)),
        byte_size(sum(summary.uplink_bytes())),
        seconds(sum(summary.round_seconds())),
        verdict(summary)[0].kind,
    )


def _client_cell(summary: RunSummary, client: str) -> str:
    if client not in summary.clients:
        return "-"
    before, after = summary.accuracy(client)
    return "-" if after is None else f"{percent(after)} ({points(before, after)})"


def _different(values: Sequence[Any], key: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield what is not the same in all values, looking into a section only where all of them have it."""
    if all(value == values[0] for value in values):
        return
    inner = [_parts(value) for value in values]
    if any(parts is None for parts in inner):
        yield key, list(values)
        return
    for name in dict.fromkeys(name for parts in inner for name in parts or ()):
        yield from _different([(parts or {}).get(name) for parts in inner], f"{key}.{name}" if key else name)


def _parts(value: Any) -> dict[str, Any] | None:
    """Return what a section is made of, by name, or by number in a list of sections; None for a single value."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, list) and any(is_dataclass(item) for item in value):
        return {str(at): item for at, item in enumerate(value)}
    return value if isinstance(value, dict) and value else None


def written(value: Any) -> str:
    """Return a value of the configuration as text, a section without what it leaves at the defaults."""
    if value is None:
        return "-"
    if is_dataclass(value):
        value = {f.name: v for f in fields(value) if (v := getattr(value, f.name)) != _default(f)}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
