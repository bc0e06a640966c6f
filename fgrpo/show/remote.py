"""What only runs with other people's machines have: bytes sent to them, and what was told of them."""

from __future__ import annotations

from fgrpo.show.summary import RunSummary
from fgrpo.show.tables import TextTable
from fgrpo.show.text import byte_size, number, ratio


def remote_tables(summary: RunSummary) -> list[TextTable]:
    """Return those of the tables below that a run has something for."""
    sent = any(round_.downlink_bytes for round_ in summary.rounds)
    told = any(round_.epsilon is not None for round_ in summary.rounds)
    return [*([downlink_table(summary)] if sent else []), *([privacy_table(summary)] if told else [])]


def downlink_table(summary: RunSummary) -> TextTable:
    """Return the bytes that the server sent, against a whole model to every client."""
    sent = [sum(round_.downlink_bytes.values()) for round_ in summary.rounds]
    whole = [round_.dense_bytes * len({*round_.uplink_bytes, *round_.quarantined}) for round_ in summary.rounds]
    rounds = max(1, len(sent))
    return TextTable(
        "Downlink: bytes from server to clients",
        ("", "sent", "as whole models", "ratio"),
        (
            (
                "a round, on average",
                byte_size(sum(sent) / rounds),
                byte_size(sum(whole) / rounds),
                ratio(sum(sent), sum(whole)),
            ),
            ("the whole run", byte_size(sum(sent)), byte_size(sum(whole)), ratio(sum(sent), sum(whole))),
        ),
        note="sent: models and updates, those for evaluations before a round among them",
    )


def privacy_table(summary: RunSummary) -> TextTable:
    """Return what the models of a run have told of one client at most."""
    told = [(round_.round, round_.epsilon) for round_ in summary.rounds if round_.epsilon is not None]
    return TextTable(
        "Privacy: what the models have told of a client at most",
        ("after round", "epsilon"),
        tuple((str(number_), number(value)) for number_, value in (told[0], told[-1])[-len(told) :]),
        note="at privacy.delta, by the models alone: reports and the server's view are not covered",
    )
