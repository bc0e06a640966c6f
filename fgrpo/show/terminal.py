"""Tables printed in a terminal, or into a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgrpo.records import TEST_SET, Evaluation, Record
from fgrpo.show.comparison import Compared, comparison_tables
from fgrpo.show.comparison_ends import endings_table
from fgrpo.show.remote import remote_tables
from fgrpo.show.summary import RunSummary
from fgrpo.show.tables import TextTable, tables
from fgrpo.show.text import number, percent, printable, ratio
from fgrpo.show.verdict import verdict
from fgrpo.wire.payload import Header
from fgrpo_kernels.codec import Encoded

_STACK_HEADERS_FROM = 6  # a table with more columns has one word of a heading per line


def print_comparison(runs: Sequence[Compared], console: Console | None = None) -> None:
    """Print several runs side by side."""
    for table in [*comparison_tables(runs), *([endings_table(runs)] if len(runs) > 1 else [])]:
        if table.rows or table.note:
            _print(table, console)


def print_summary(records: Iterable[Record], console: Console | None = None) -> None:
    """Print the verdict and the tables that a run ends with."""
    summary, console = RunSummary.of(records), console or _console()
    for finding in verdict(summary) if summary.rounds else ():
        says, rest = (printable(t, console.encoding) for t in (finding.says, f"{finding.evidence}. {finding.remedy}"))
        console.print(Text(says, style=f"bold {'yellow' if finding.alarming else 'green'}"), highlight=False)
        console.print(Text(rest.strip()), highlight=False)
        console.print()
    print_tables([*tables(summary), *remote_tables(summary)], console)


def print_tables(tables: Iterable[TextTable], console: Console | None = None) -> None:
    """Print tables one after another."""
    for table in tables:
        _print(table, console)


def print_evaluations(evaluations: Sequence[Evaluation], console: Console | None = None) -> None:
    """Print the accuracy of one model on every client's held-out prompts and on the run's test set, and its samples."""
    rows = tuple((e.client, str(e.prompts), percent(e.accuracy), number(e.score)) for e in evaluations)
    of_clients = [evaluation for evaluation in evaluations if evaluation.client != TEST_SET]
    mean = fmean(e.accuracy for e in of_clients), fmean(e.score for e in of_clients)
    footer = ("mean of clients", "", percent(mean[0]), number(mean[1]))
    title = f"Held-out prompts, model after round {evaluations[0].round}"
    _print(TextTable(title, ("client", "prompts", "accuracy", "score"), rows, footer), console)
    console = console or _console()
    for client, sample in ((e.client, sample) for e in evaluations for sample in e.samples):
        for text in (
            f"{client}: {sample.prompt}",
            f"  answered, {number(sample.score)}: {sample.completion}",
            *([f"  right: {sample.answer}"] if sample.answer else []),
        ):
            console.print(Text(printable(text, console.encoding)), highlight=False)


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

    def text(content: str, style: str = "") -> Text:
        """Return text that is no markup: titles and columns are names from outside too."""
        return Text(printable(content, console.encoding), style=style)

    shown = Table(box=box.SIMPLE, title=text(table.title, "bold"), title_justify="left", pad_edge=False)
    shown.collapse_padding, shown.show_header, shown.show_footer = True, any(table.columns), bool(table.footer)
    for at, column in enumerate(table.columns):
        is_number = table.is_number(at)
        footer = text(table.footer[at] if table.footer else "", "bold")
        header = text(column)
        if is_number and len(table.columns) > _STACK_HEADERS_FROM:
            header = Text("\n").join(map(text, column.split(" ")))
        shown.add_column(header, footer, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in table.rows:
        shown.add_row(*map(text, row))
    console.print(shown)
    if table.note:
        console.print(text(table.note, "dim"), highlight=False)
    console.print()


def _console() -> Console:
    """Return standard output; where it is a file, lines may be longer than a terminal's 80 characters."""
    return Console() if sys.stdout.isatty() else Console(force_terminal=False, width=120)
