"""What a run's records add up to, and the tables that say it: in the terminal and, the same ones, in the report."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgrpo.records import Evaluation, Record, Report, RoundSummary
from fgrpo.show.text import byte_size, number, percent, points, printable, ratio, seconds
from fgrpo.wire.payload import Header
from fgrpo_kernels.codec import Encoded

_MOST_SHOWN = 24  # clients in a table or a picture
_STACK_HEADERS_FROM = 6  # a table with more columns has one word of a heading per line


@dataclass(frozen=True)
class RunSummary:
    """The records of a run, sorted by what they are about.

    Attributes:
        clients: names in the order in which they appear.
        rounds: the whole rounds, in order.
        reports: per client and round; none for a round in which the client was quarantined.
        evaluations: per client and round; round 0 is before training.
    """

    clients: tuple[str, ...]
    rounds: tuple[RoundSummary, ...]
    reports: Mapping[str, Mapping[int, Report]]
    evaluations: Mapping[str, Mapping[int, Evaluation]]

    @staticmethod
    def of(records: Iterable[Record]) -> RunSummary:
        rounds: list[RoundSummary] = []
        reports: dict[str, dict[int, Report]] = {}
        evaluations: dict[str, dict[int, Evaluation]] = {}
        for record in records:
            for client in record.quarantined if isinstance(record, RoundSummary) else (record.client,):
                reports.setdefault(client, {})
                evaluations.setdefault(client, {})
            if isinstance(record, RoundSummary):
                rounds.append(record)
            elif isinstance(record, Report):
                reports[record.client][record.round] = record
            else:
                evaluations[record.client][record.round] = record
        return RunSummary(tuple(reports), tuple(rounds), reports, evaluations)

    def accuracy(self, client: str) -> tuple[float | None, float | None]:
        """Return the accuracy before training and at the last evaluation since, each None where there is none."""
        measured = self.evaluations[client]
        last = max(measured, default=0)
        return measured[0].accuracy if 0 in measured else None, measured[last].accuracy if last else None

    def mean_accuracy(self) -> tuple[float, float] | None:
        """Return the means before and after, over the clients that have both; None if there is no such client."""
        both = [pair for client in self.clients if None not in (pair := self.accuracy(client))]
        return (fmean(before for before, _ in both), fmean(after for _, after in both)) if both else None  # type: ignore[misc]

    def shown(self) -> tuple[str, ...]:
        """Return the clients that there is room to show one by one: all of a few, those heard most often of many."""
        most = sorted(self.clients, key=lambda client: (-len(self.reports[client]), -len(self.evaluations[client])))
        chosen = set(most[:_MOST_SHOWN])
        return tuple(client for client in self.clients if client in chosen)

    @property
    def evaluated_after(self) -> int:
        """The last round after which the model was evaluated; 0 if it never was since training began."""
        return max((round_number for rounds in self.evaluations.values() for round_number in rounds), default=0)

    def times_quarantined(self) -> Counter[str]:
        return Counter(client for summary in self.rounds for client in summary.quarantined)

    def uplink_bytes(self) -> list[int]:
        """Return the bytes of all accepted payloads together, per round."""
        return [sum(summary.uplink_bytes.values()) for summary in self.rounds]

    def float32_bytes(self) -> list[int]:
        """Return what the same deltas would take as float32, per round."""
        return [summary.dense_bytes * len(summary.uplink_bytes) for summary in self.rounds]

    def stage_seconds(self) -> dict[str, list[float]]:
        """Return seconds per stage and round: the clients' stages, added up over clients, then the server's own."""
        stages: dict[str, list[float]] = {}
        for at, summary in enumerate(self.rounds):
            reports = [rounds[summary.round] for rounds in self.reports.values() if summary.round in rounds]
            server = {stage: spent for stage, spent in summary.seconds.items() if stage != "clients"}
            for spent_per_stage in (*(report.seconds for report in reports), server):
                for stage, spent in spent_per_stage.items():
                    stages.setdefault(stage, [0.0] * len(self.rounds))[at] += spent
        return stages

    def round_seconds(self) -> list[float]:
        """Return the wall-clock seconds per round, from sending the model to the server's step."""
        return [sum(summary.seconds.values()) for summary in self.rounds]


@dataclass(frozen=True)
class TextTable:
    """A table as text.

    Attributes:
        rows: cells as they are shown; `footer` is one more row, set apart, or empty.
        numbers_from: columns from this one on hold numbers and are set flush right.
        note: one line on how to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footer: tuple[str, ...] = ()
    numbers_from: int = 1
    note: str = ""


def tables(summary: RunSummary) -> list[TextTable]:
    """Return the tables that a run ends with."""
    return [client_table(summary), uplink_table(summary), stage_table(summary)]


def client_table(summary: RunSummary) -> TextTable:
    """Return what each client gained, and how it counted."""
    quarantined = summary.times_quarantined()
    rows: list[tuple[str, ...]] = []
    shown = summary.shown()
    for client in shown:
        before, after = summary.accuracy(client)
        rewards = [report.reward_mean for _, report in sorted(summary.reports[client].items())]
        weights = [round_.weights.get(client, 0.0) for round_ in summary.rounds]
        rows.append(
            (
                client,
                percent(before),
                percent(after),
                points(before, after),
                number(rewards[0] if rewards else None),
                number(rewards[-1] if rewards else None),
                percent(weights[-1] if weights else None),
                percent(fmean(weights) if weights else None),
                str(quarantined[client]),
            )
        )
    if len(shown) < len(summary.clients):
        rows.append((f"and {len(summary.clients) - len(shown)} more", *[""] * 8))
    mean = summary.mean_accuracy()
    footer = (
        ("mean", percent(mean[0]), percent(mean[1]), points(*mean), "", "", "", "", "")
        if mean and len(rows) > 1
        else ()
    )
    return TextTable(
        f"Clients: held-out accuracy, reward and weight, {_rounds(len(summary.rounds))}",
        (
            "client",
            "accuracy before",
            "accuracy after",
            "points gained",
            "reward first",
            "reward last",
            "weight last",
            "weight mean",
            "rounds missed",
        ),
        tuple(rows),
        footer,
        note="reward: mean over a round, in the client's own scale; weight: share of a round's update; "
        "missed: the reply was quarantined" + _robust_note(summary),
    )


def _robust_note(summary: RunSummary) -> str:
    """Say so where the aggregation rule's weights did not apply, or not to the whole deltas."""
    used = {round_.robust for round_ in summary.rounds}
    notes = [
        f"; {name}: per parameter, without the rule's weights" for name in ("trimmed_mean", "median") if name in used
    ]
    if "clipped_mean" in used:
        notes.append("; clipped_mean: the weights are of deltas clipped to aggregation.max_norm")
    return "".join(notes)


def uplink_table(summary: RunSummary) -> TextTable:
    """Return the bytes that clients sent, measured, against float32."""
    uplink, float32 = summary.uplink_bytes(), summary.float32_bytes()
    share, rounds = ratio(sum(uplink), sum(float32)) if uplink else "-", max(1, len(uplink))
    rows = [
        ("a round, on average", byte_size(sum(uplink) / rounds), byte_size(sum(float32) / rounds), share),
        ("the whole run", byte_size(sum(uplink)), byte_size(sum(float32)), share),
    ]
    return TextTable(
        "Uplink: bytes from clients to server",
        ("", "sent", "as float32", "ratio"),
        tuple(rows),
        note="sent: lengths of the accepted payloads, container and metadata included",
    )


def stage_table(summary: RunSummary) -> TextTable:
    """Return where the time went."""
    stages, wall, rounds = summary.stage_seconds(), summary.round_seconds(), max(1, len(summary.rounds))
    total = sum(map(sum, stages.values())) or 1.0
    return TextTable(
        "Time per stage",
        ("stage", "a round", "the whole run", "share"),
        tuple(
            (stage, seconds(sum(spent) / rounds), seconds(sum(spent)), percent(sum(spent) / total))
            for stage, spent in stages.items()
        ),
        footer=("wall clock", seconds(sum(wall) / rounds), seconds(sum(wall)), ""),
        note="stages of clients are added up over clients; evaluation and saving are not counted",
    )


def quarantine_table(summary: RunSummary) -> TextTable:
    """Return every reply that was not used, and why."""
    return TextTable(
        "Quarantined replies",
        ("client", "round", "reason"),
        tuple((client, str(s.round), reason) for s in summary.rounds for client, reason in s.quarantined.items()),
        numbers_from=3,
    )


def comparison_table(runs: Mapping[str, RunSummary]) -> TextTable:
    """Return runs of the same clients side by side: held-out accuracy per client before and after, and wall time."""
    clients = list(dict.fromkeys(client for summary in runs.values() for client in summary.clients))
    rows = []
    for name, summary in runs.items():
        pairs = [summary.accuracy(c) if c in summary.clients else (None, None) for c in clients]
        pairs.append(summary.mean_accuracy() or (None, None))
        cells = [f"{percent(before)} → {percent(after)}" for before, after in pairs]
        rows.append((name, *cells, points(*pairs[-1]), seconds(sum(summary.round_seconds()))))
    return TextTable(
        "Held-out accuracy before and after", ("run", *clients, "mean", "points gained", "rounds took"), tuple(rows)
    )


def print_comparison(runs: Mapping[str, Iterable[Record]], console: Console | None = None) -> None:
    """Print several runs side by side."""
    _print(comparison_table({name: RunSummary.of(records) for name, records in runs.items()}), console)


def print_summary(records: Iterable[Record], console: Console | None = None) -> None:
    """Print the tables that a run ends with."""
    for table in tables(RunSummary.of(records)):
        _print(table, console)


def print_evaluations(evaluations: Sequence[Evaluation], console: Console | None = None) -> None:
    """Print the accuracy of one model on every client's held-out prompts."""
    rows = tuple((e.client, str(e.prompts), percent(e.accuracy), number(e.score)) for e in evaluations)
    mean = fmean(e.accuracy for e in evaluations), fmean(e.score for e in evaluations)
    footer = ("mean", "", percent(mean[0]), number(mean[1]))
    title = f"Held-out prompts, model after round {evaluations[0].round}"
    _print(TextTable(title, ("client", "prompts", "accuracy", "score"), rows, footer), console)


def print_payload(header: Header, delta: Encoded, length: int, console: Console | None = None) -> None:
    """Print what a payload of `length` bytes says of itself."""
    rows = (
        ("client", header.client),
        ("round", str(header.round)),
        ("codec", delta.codec),
        ("block", str(delta.block)),
        ("parameters", f"{delta.size:,}"),
        ("bytes", f"{length:,} ({ratio(length, 4 * delta.size)} of float32)"),
        ("manifest", header.manifest),
        ("base", header.base),
    )
    _print(TextTable("Payload: whole and well-formed", ("", ""), rows, numbers_from=2), console)


def _print(table: TextTable, console: Console | None) -> None:
    console = console or _console()
    shown = Table(box=box.SIMPLE, title=table.title, title_justify="left", title_style="bold", pad_edge=False)
    shown.collapse_padding, shown.show_header, shown.show_footer = True, any(table.columns), bool(table.footer)
    for at, column in enumerate(table.columns):
        is_number = at >= table.numbers_from
        footer = Text(table.footer[at] if table.footer else "", style="bold")
        header = column.replace(" ", "\n") if is_number and len(table.columns) > _STACK_HEADERS_FROM else column
        shown.add_column(header, footer, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(printable(cell, console.encoding)) for cell in row))
    console.print(shown)
    if table.note:
        console.print(Text(table.note, style="dim"), highlight=False)
    console.print()


def _console() -> Console:
    """Return standard output; where it is a file, lines may be longer than a terminal's 80 characters."""
    return Console() if sys.stdout.isatty() else Console(force_terminal=False, width=120)


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"
