"""What there is to learn from: counts, never the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.records import ClientData


@dataclass(frozen=True)
class Stock:
    """What one task of a client has to train on.

    Attributes:
        task: its name.
        rows: training rows; None where the task makes its examples up without end.
        labels: training rows per value of the column that the data were split by; empty without one.
        files: a digest per dataset.
    """

    task: str
    rows: int | None
    can_train: bool
    labels: Mapping[str, int]
    files: Mapping[str, str]


def client_data(client: str, stocks: Sequence[Stock], held_out: Sequence[int]) -> ClientData:
    """Return what is told of a client: its stock, and how many prompts it holds out itself, for each of its tasks."""
    takes_part = any(stock.can_train for stock in stocks)
    part = "this task" if takes_part else "the client"
    endless = any(stock.rows is None for stock in stocks)
    rows = None if endless else sum(stock.rows or 0 for stock in stocks)
    labels = sum((Counter(stock.labels) for stock in stocks), Counter[str]())
    return ClientData(
        client=client,
        rows=rows if takes_part else 0,
        held_out=sum(held_out),
        labels=dict(sorted(labels.items())),
        files={name: digest for stock in stocks for name, digest in stock.files.items()},
        notes=[
            f"client {client}: task {stock.task} has nothing to train on: all its prompts are held out for "
            f"evaluation ({own} by itself); {part} takes no part; lower evaluation.prompts"
            for stock, own in zip(stocks, held_out, strict=True)
            if not stock.can_train
        ],
    )
