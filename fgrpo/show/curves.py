"""A run's curves: what a round measured as named numbers, and the observer that hands them to whoever draws them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from statistics import fmean
from types import TracebackType
from typing import Protocol

from fgrpo.interrupts import held_back
from fgrpo.records import TEST_SET, Evaluation, Record, Report, RoundSummary


class Sink(Protocol):
    """Where curves are drawn. A context manager, as most of them buffer. Never interrupted, as they have threads."""

    def write(self, round_number: int, values: dict[str, float], texts: dict[str, str]) -> None:
        """Add one round; rounds come in order, and those before a resumed run's present ones come again."""
        ...

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class CurveWriter:
    """An observer that hands every round's curves to sinks once the round is whole.

    Args:
        past: the records of the rounds that the run's folder already holds.
    """

    def __init__(self, sinks: Sequence[Sink], past: Sequence[Record] = ()) -> None:
        self._sinks, self._past = sinks, past
        self._gathered: list[Record] = []

    def __enter__(self) -> CurveWriter:
        with held_back(), ExitStack() as stack:
            for sink in self._sinks:
                stack.enter_context(sink)
            for number, records in groupby(self._past, lambda record: record.round):
                self._write(number, list(records))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with held_back(), self._open:
            self._flush()

    def stage(self, who: str, stage: str) -> None:
        # A round's records come in one go once it is on disk, so the next stage means that they are complete.
        with held_back():
            self._flush()

    def record(self, record: Record) -> None:
        self._gathered.append(record)

    def _flush(self) -> None:
        records, self._gathered = self._gathered, []
        for number, of_round in groupby(records, lambda record: record.round):
            self._write(number, list(of_round))

    def _write(self, number: int, records: list[Record]) -> None:
        values, texts = round_values(records), round_texts(records)
        if values:
            for sink in self._sinks:
                sink.write(number, values, texts)


def round_values(records: Sequence[Record]) -> dict[str, float]:
    """Return the curves' values of one round.

    Per client, as `<what>/<client>`: `reward`, `reward_std`, `completion_length`, `degenerate`, `informative`,
    `groups`, `heldout`, `weight`, `gain`, `agreement`, `accuracy`, `score`, and what the loss measured (`loss`,
    `entropy`, ...).
    Per round: `evaluation/mean_accuracy` and `evaluation/mean_score` over clients, `evaluation/test_set_accuracy` and
    `_score`, `bytes/uplink`, `bytes/float32`, `server/update_norm`, `server/step_size`, `server/quarantined`, and
    `time/<stage>` in seconds, where stages of clients are added up.
    """
    values: dict[str, float] = {}
    stages: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Report):
            values |= _of_client(record.client, _report(record))
            stages.update(record.seconds)
        elif isinstance(record, Evaluation) and record.client != TEST_SET:
            values |= _of_client(record.client, {"accuracy": record.accuracy, "score": record.score})
        elif isinstance(record, RoundSummary):
            values |= _round(record)
            stages.update(record.seconds)
    return values | _evaluation(records) | {f"time/{stage}": seconds for stage, seconds in stages.items()}


def round_texts(records: Sequence[Record]) -> dict[str, str]:
    """Return the samples of one round as Markdown, by `samples/<client>`."""
    return {
        f"samples/{record.client}": "\n\n---\n\n".join(
            f"**prompt** {sample.prompt}\n\n**reference** {sample.answer}\n\n"
            f"**answer** ({'right' if sample.correct else 'wrong'}) {sample.completion}"
            for sample in record.samples
        )
        for record in records
        if isinstance(record, Evaluation) and record.samples
    }


def _report(report: Report) -> dict[str, float]:
    return {
        "reward": report.reward_mean,
        "reward_std": report.reward_std,
        "completion_length": report.completion_length,
        "degenerate": report.degenerate,
        "informative": report.informative,
        "groups": report.groups,
        **({} if report.heldout is None else {"heldout": report.heldout.mean}),
        **report.metrics,
    }


def _round(summary: RoundSummary) -> dict[str, float]:
    return {
        **{f"weight/{client}": weight for client, weight in summary.weights.items()},
        **{f"gain/{client}": gain for client, gain in summary.gains.items()},
        **{f"agreement/{client}": value for client, value in summary.agreement.items()},
        **{f"delta_norm/{client}": norm for client, norm in summary.delta_norms.items()},
        "server/step_size": summary.step_size,
        "bytes/uplink": float(sum(summary.uplink_bytes.values())),
        "bytes/float32": float(summary.dense_bytes * len(summary.uplink_bytes)),
        "server/update_norm": summary.update_norm,
        "server/quarantined": float(len(summary.quarantined)),
    }


def _evaluation(records: Sequence[Record]) -> dict[str, float]:
    evaluations = [record for record in records if isinstance(record, Evaluation)]
    values = {}
    for name, group in (
        ("mean", [e for e in evaluations if e.client != TEST_SET]),
        ("test_set", [e for e in evaluations if e.client == TEST_SET]),
    ):
        if group:
            values[f"evaluation/{name}_accuracy"] = fmean(e.accuracy for e in group)
            values[f"evaluation/{name}_score"] = fmean(e.score for e in group)
    return values


def _of_client(client: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{name}/{client}": value for name, value in values.items()}
