"""What a person sees while a run goes on: a live display in a terminal, and one line per round everywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from types import TracebackType

from rich.columns import Columns
from rich.console import Console, Group, JustifyMethod
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fgrpo.engines.base import Observer
from fgrpo.records import OF_THE_RUN, TEST_SET, ClientData, Evaluation, Record, Report, RoundSummary
from fgrpo.show.tables import label_counts, row_count
from fgrpo.show.text import byte_size, number, percent, printable, seconds

_BARS = "▁▂▃▄▅▆▇█"
_LEGEND = "each round: seconds, bytes sent up, accuracy; each client's mean reward (weight)"
_TREND_ROUNDS = 16
_ROWS = 16  # clients that the live table shows
_RESULTS = 16  # clients that a round's line names
_ALIGNMENT: tuple[JustifyMethod, ...] = ("left", "right", "right", "left")


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def stage(self, who: str, stage: str) -> None:
        for observer in self._observers:
            observer.stage(who, stage)

    def record(self, record: Record) -> None:
        for observer in self._observers:
            observer.record(record)


class Progress:
    """An observer that shows a run; a context manager, as the live display must end whatever happens.

    Every round leaves one line, and one more per quarantined client. In a terminal the lines scroll past above a live
    display; in a pipe or a log file they are all there is, without colours or control characters.

    Args:
        rounds: rounds of the whole run.
        clients: the clients' names.
        asked: how many of them take part in a round; all if None.
        done: rounds completed by an earlier process.
        console: where to show it; standard output if None.
    """

    def __init__(
        self,
        rounds: int,
        clients: Sequence[str],
        *,
        asked: int | None = None,
        done: int = 0,
        console: Console | None = None,
    ) -> None:
        # FORCE_COLOR makes rich take a pipe for a terminal; a log file should stay a log file all the same.
        self._console = console or Console(force_terminal=None if sys.stdout.isatty() else False)
        self._rounds, self._clients, self._done = rounds, tuple(clients), done
        self._asked = len(self._clients) if asked is None else asked
        self._clock = _Clock()
        self._server = "start"  # what the server does; clients are at work during its stage `clients`
        self._at_work: dict[str, str] = {}  # clients and their stages
        self._through: set[str] = set()  # clients whose turn in this round is over
        self._rewards: dict[str, list[float]] = {}  # by client, the last ones heard at the end
        self._failed: set[str] = set()  # clients whose failing rewards have been shown
        self._finished: list[Record] = []  # records of the round that ended last, until it is shown
        self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        self._clock.start()
        if self._console.is_interactive:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._show_finished()
        finally:
            self._live.stop()  # does nothing where it was not started

    def stage(self, who: str, stage: str) -> None:
        # A round's records come in one go once it is on disk, so the next stage means that they are complete.
        self._show_finished()
        if who == "server":
            self._server, self._at_work = stage, {}
            if stage == "clients":
                self._through = set()
                self._clock.start_round()
        elif stage == "done":
            self._through.add(who)
            self._at_work = {client: at for client, at in self._at_work.items() if client != who}
        else:
            self._at_work = {**self._at_work, who: stage}

    def record(self, record: Record) -> None:
        self._finished.append(record)
        if isinstance(record, Report):
            past = self._rewards.pop(record.client, [])
            self._rewards[record.client] = [*past[1 - _TREND_ROUNDS :], record.reward_mean]
        elif isinstance(record, RoundSummary):
            self._done = record.round
            self._through = set()
            self._clock.end_round()

    def _show_finished(self) -> None:
        if not self._finished:
            return
        records, self._finished = self._finished, []
        reports = {record.client: record for record in records if isinstance(record, Report)}
        self._print_data([record for record in records if isinstance(record, ClientData)])
        self._print_failures(list(reports.values()))
        evaluations = [record for record in records if isinstance(record, Evaluation)]
        for summary in (record for record in records if isinstance(record, RoundSummary)):
            for client, reason in summary.quarantined.items():
                line = f"round {summary.round}: quarantined {client}: {reason}"
                self._print(Text(self._plain(line), style="yellow"))
            head = [
                f"round {summary.round:>{len(str(self._rounds))}}/{self._rounds}",
                f"{seconds(sum(summary.seconds.values())):>7}",
                f"{byte_size(sum(summary.uplink_bytes.values())):>7} up",
            ]
            results = [self._result(reports[c], w) for c, w in list(summary.weights.items())[:_RESULTS]]
            more = len(summary.weights) - len(results)
            self._print_round(head, evaluations, [*results, *([f"and {more} more"] if more else [])])
        if not reports and evaluations:
            self._print_round(["before training"], evaluations, [], f"\n{_LEGEND}")

    def _print_data(self, data: list[ClientData]) -> None:
        if any(client.rows for client in data):
            self._print(Text("training rows:"))
            learning = [client for client in data if client.client not in OF_THE_RUN]
            rows = [f"  {c.client}: {row_count(c)}  {label_counts(c)}".rstrip() for c in learning]
            self._print_some(rows, style="")
        self._print_some([note for client in data for note in client.notes], style="yellow")

    def _print_some(self, lines: Sequence[str], style: str) -> None:
        """Print lines on single clients; of very many the first ones."""
        more = [f"  and {len(lines) - _ROWS} more"] if len(lines) > _ROWS else []
        for line in [*lines[:_ROWS], *more]:
            self._print(Text(self._plain(line), style=style))

    def _print_failures(self, reports: list[Report]) -> None:
        """Show the first failure of a client's rewards, once; the report has all counts."""
        for report in reports:
            if report.reward_failure and report.client not in self._failed:
                self._failed.add(report.client)
                line = f"round {report.round}: {report.client}: {report.reward_failures} rewards failed; the first: "
                self._print(Text(self._plain(line + report.reward_failure), style="yellow"))

    def _print_round(self, head: list[str], evaluations: list[Evaluation], results: list[str], below: str = "") -> None:
        scored = [evaluation for evaluation in evaluations if evaluation.unscored < evaluation.prompts]
        of_clients = [evaluation.accuracy for evaluation in scored if evaluation.client != TEST_SET]
        on_test_set = [evaluation.accuracy for evaluation in scored if evaluation.client == TEST_SET]
        for what, accuracies in (("accuracy", of_clients), ("test set", on_test_set)):
            head = [*head, *([f"{what} {percent(fmean(accuracies))}"] if accuracies else [])]
        if unscored := sum(evaluation.unscored for evaluation in evaluations):
            asked = sum(evaluation.prompts for evaluation in evaluations)
            head = [*head, f"no reward could be told for {unscored} of {asked} answers"]
        if not self._live.is_started:
            self._print(Text("  ".join(head + results) + below))
            return
        line = Table.grid(padding=(0, 2))
        line.add_column(no_wrap=True)
        line.add_column()
        line.add_row(Text("  ".join(head)), Columns([Text(result) for result in results], padding=(0, 2)))
        self._print(line)
        if below:
            self._print(Text(below.strip()))

    def _print(self, what: Text | Table) -> None:
        self._console.print(what, soft_wrap=not self._live.is_started, highlight=False)

    def _result(self, report: Report, weight: float) -> str:
        return self._plain(f"{report.client} {number(report.reward_mean)} ({100 * weight:.0f}%)")

    def _plain(self, text: str) -> str:
        return printable(text, self._console.encoding)

    def __rich__(self) -> Group:
        """Return the live display as it is now; rich asks for it from a thread of its own, so this only reads."""
        at_work, through = self._at_work, len(self._through)
        fraction = self._done + through / max(1, self._asked)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"round {min(self._done + 1, self._rounds)} of {self._rounds}", style="bold"),
            ProgressBar(self._rounds, fraction, width=28),
            Text(f"{_clock_time(self._clock.elapsed())} elapsed"),
            Text(f"{self._time_left()} left", style="cyan"),
        )
        now = [f"{self._plain(client)}: {stage}" for client, stage in at_work.items()] or [f"server: {self._server}"]
        if at_work:
            now.append(f"{through} of {self._asked} done")
        return Group(head, Text(", ".join(now), style="dim"), self._reward_table(at_work))

    def _reward_table(self, at_work: Mapping[str, str]) -> Table:
        table = Table.grid(padding=(0, 2))
        for justify in _ALIGNMENT:
            table.add_column(justify=justify, no_wrap=True)
        table.add_row("", *(Text(title, style="dim") for title in ("reward", "change", "last rounds")))
        for client in self._shown(at_work):
            recent = self._rewards.get(client, [])
            change = recent[-1] - recent[-2] if len(recent) > 1 else None
            style = "red" if change is not None and change < 0 else "green"
            table.add_row(
                Text(self._plain(client), style="bold" if client in at_work else ""),
                Text(number(recent[-1] if recent else None)),
                Text("" if change is None else f"{change:+.2g}", style=style),
                Text("" if self._console.options.ascii_only else sparkline(recent), style="cyan"),
            )
        return table

    def _shown(self, at_work: Mapping[str, str]) -> Sequence[str]:
        """Return the clients that the table has room for: all, or those at work and those heard last."""
        if len(self._clients) <= _ROWS:
            return self._clients
        heard = [client for client in reversed(list(self._rewards)) if client not in at_work]
        return [*at_work, *heard][:_ROWS]

    def _time_left(self) -> str:
        left = self._clock.left(self._rounds - self._done)
        return "?" if left is None else _clock_time(left)


class _Clock:
    """Time since the start, and a guess at the time left from the rounds that this process has seen."""

    def __init__(self) -> None:
        self._start = self._first_round = self._last_end = 0.0
        self._ended = 0

    def start(self) -> None:
        self._start = time.monotonic()

    def start_round(self) -> None:
        self._first_round = self._first_round or time.monotonic()

    def end_round(self) -> None:
        self._last_end, self._ended = time.monotonic(), self._ended + 1

    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def left(self, rounds: int) -> float | None:
        """Return the seconds that so many more rounds take; None before the first round has ended."""
        if not self._ended:
            return None
        a_round = (self._last_end - self._first_round) / self._ended
        return max(0.0, rounds * a_round - (time.monotonic() - self._last_end))


def sparkline(values: Sequence[float]) -> str:
    """Return bars between the smallest and the largest of the values, whatever their scale."""
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1)) if span else 0] for value in values)


def _clock_time(duration: float) -> str:
    minutes, rest = divmod(int(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
