"""The tables that say what a run came to: in the terminal and, the same ones, in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from fgrpo.records import ClientData
from fgrpo.show.summary import MOST_SHOWN, RunSummary
from fgrpo.show.text import byte_size, counted, number, percent, points, ratio, seconds

_LABELS_SHOWN = 8


@dataclass(frozen=True)
class TextTable:
    """A table as text.

    Attributes:
        rows: cells as they are shown; `footer` is one more row, set apart, or empty.
        numbers_from, numbers_to: columns from the one to before the other hold numbers and are set flush right.
        note: one line on how to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footer: tuple[str, ...] = ()
    numbers_from: int = 1
    numbers_to: int | None = None
    note: str = ""

    def is_number(self, column: int) -> bool:
        return column in range(len(self.columns))[self.numbers_from : self.numbers_to]


def tables(summary: RunSummary) -> list[TextTable]:
    """Return the tables that a run ends with."""
    data = [data_table(summary)] if summary.data else []
    return [client_table(summary), *data, uplink_table(summary), stage_table(summary)]


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
        f"Clients: held-out accuracy, reward and weight, {counted(len(summary.rounds), 'round')}",
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
        note="accuracy: share of the held-out answers that the first reward function gives exactly 1; "
        "reward: mean over a round, in the client's own scale; weight: share of a round's update; "
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


def data_table(summary: RunSummary) -> TextTable:
    """Return what each client has to learn from, and what its rewards made of it."""
    heard = set(summary.shown())
    # All of a few clients; of many those that the other tables show.
    shown = [c for c in summary.data if c.client in heard] if len(summary.data) > MOST_SHOWN else summary.data
    rows = []
    for client in shown:
        reports = summary.reports.get(client.client, {}).values()
        left, failed = sum(r.unrewarded for r in reports), sum(r.reward_failures for r in reports)
        counts = (sum(r.sequences for r in reports), sum(r.tokens for r in reports), left, failed)
        labels = label_counts(client)
        rows.append((client.client, row_count(client), str(client.held_out), *(f"{n:,}" for n in counts), labels))
    if len(shown) < len(summary.data):
        rows.append((f"and {len(summary.data) - len(shown)} more", *[""] * 7))
    notes = [note for client in summary.data for note in client.notes]
    notes = [*notes[:MOST_SHOWN], *([f"and {len(notes) - MOST_SHOWN} more"] if len(notes) > MOST_SHOWN else [])]
    has_labels = any(map(label_counts, summary.data))
    columns = (
        "client",
        "training rows",
        "held out",
        "sequences",
        "tokens",
        "without reward",
        "rewards failed",
        "labels",
    )
    return TextTable(
        "Data: what clients have, and what they trained on in all rounds",
        columns if has_labels else columns[:-1],
        tuple(row if has_labels else row[:-1] for row in rows),
        numbers_to=-1 if has_labels else None,
        note="; ".join(notes),
    )


def row_count(client: ClientData) -> str:
    return "endless" if client.rows is None else f"{client.rows:,}"


def label_counts(client: ClientData) -> str:
    """Return a client's labels with their counts; nothing where its only label is its own name, as its rows say it."""
    return "" if set(client.labels) == {client.client} else histogram(client.labels)


def histogram(labels: Mapping[str, int]) -> str:
    """Return the commonest labels with their counts, and how many others there are."""
    common = Counter(labels).most_common(_LABELS_SHOWN)
    rest = len(labels) - len(common)
    return ", ".join([*(f"{label} {count:,}" for label, count in common), *([f"{rest} others"] if rest else [])])


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
