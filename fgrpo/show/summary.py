"""What a run's records add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from fgrpo.records import OF_THE_RUN, TEST_SET, ClientData, Evaluation, Record, Report, RoundSummary

MOST_SHOWN = 24  # clients in a table or a picture


@dataclass(frozen=True)
class RunSummary:
    """The records of a run, sorted by what they are about.

    Attributes:
        clients: names in the order in which they appear.
        rounds: the whole rounds, in order.
        reports: per client and round; none for a round in which the client was quarantined.
        evaluations: per client and round; round 0 is before training.
        data: what each client has to learn from; nothing for a run from before this was recorded.
        test_set: per round, the evaluation on the run's own test set; empty without one.
    """

    clients: tuple[str, ...]
    rounds: tuple[RoundSummary, ...]
    reports: Mapping[str, Mapping[int, Report]]
    evaluations: Mapping[str, Mapping[int, Evaluation]]
    data: tuple[ClientData, ...] = ()
    test_set: Mapping[int, Evaluation] = field(default_factory=dict)

    @staticmethod
    def of(records: Iterable[Record]) -> RunSummary:
        rounds: list[RoundSummary] = []
        reports: dict[str, dict[int, Report]] = {}
        evaluations: dict[str, dict[int, Evaluation]] = {}
        test_set: dict[int, Evaluation] = {}
        data: list[ClientData] = []
        for record in records:
            if isinstance(record, Evaluation) and record.client == TEST_SET:
                test_set[record.round] = record
            elif isinstance(record, ClientData):
                data.append(record)
            else:
                for client in record.quarantined if isinstance(record, RoundSummary) else (record.client,):
                    reports.setdefault(client, {})
                    evaluations.setdefault(client, {})
                if isinstance(record, RoundSummary):
                    rounds.append(record)
                elif isinstance(record, Report):
                    reports[record.client][record.round] = record
                else:
                    evaluations[record.client][record.round] = record
        of_clients = tuple(told for told in data if told.client not in OF_THE_RUN)
        return RunSummary(tuple(reports), tuple(rounds), reports, evaluations, of_clients, test_set)

    def accuracy(self, client: str) -> tuple[float | None, float | None]:
        """Return the accuracy before training and at the last evaluation since, each None where there is none."""
        return _before_and_after(self.evaluations[client])

    def test_accuracy(self) -> tuple[float | None, float | None]:
        """Return the same on the run's own test set."""
        return _before_and_after(self.test_set)

    def mean_accuracy(self) -> tuple[float, float] | None:
        """Return the means before and after, over the clients that have both; None if there is no such client."""
        both = [pair for client in self.clients if None not in (pair := self.accuracy(client))]
        return (fmean(before for before, _ in both), fmean(after for _, after in both)) if both else None  # type: ignore[misc]

    def shown(self) -> tuple[str, ...]:
        """Return the clients that there is room to show one by one: all of a few, those heard most often of many."""
        most = sorted(self.clients, key=lambda client: (-len(self.reports[client]), -len(self.evaluations[client])))
        chosen = set(most[:MOST_SHOWN])
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


def _before_and_after(measured: Mapping[int, Evaluation]) -> tuple[float | None, float | None]:
    last = max(measured, default=0)
    return measured[0].accuracy if 0 in measured else None, measured[last].accuracy if last else None
