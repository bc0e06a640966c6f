"""A run's curves for TensorBoard."""

from __future__ import annotations

from collections import defaultdict
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from fgrpo.records import Evaluation, Record, Report, RoundSummary
from fgrpo.run_folder import RunFolder


class TensorBoardWriter:
    """An observer that writes scalars to `RUN/tensorboard/`; the step is the round.

    Per client, as `<what>/<client>`: `reward`, `reward_std`, `completion_length`, `degenerate`, `informative`,
    `groups`, `weight`, `gain`, `accuracy`, `score`, and what the loss measured (`loss`, `entropy`, ...). Per round:
    `bytes/uplink`, `bytes/float32`, `server/update_norm`, `server/quarantined`, and `time/<stage>` in seconds, where
    stages of clients are added up over clients.

    The rounds that the folder already holds are written first, in place of what an earlier process wrote of them: so
    the curves of a resumed run are whole, however that process ended.
    """

    def __init__(self, folder: RunFolder) -> None:
        past = list(folder.records())
        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=0 if past else None)
        self._client_seconds: dict[str, float] = defaultdict(float)
        for record in past:
            self.record(record)

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    def stage(self, who: str, stage: str) -> None:
        """Stages are written once they are over, with their round."""

    def record(self, record: Record) -> None:
        if isinstance(record, Report):
            self._report(record)
        elif isinstance(record, Evaluation):
            self._scalar(f"accuracy/{record.client}", record.accuracy, record.round)
            self._scalar(f"score/{record.client}", record.score, record.round)
        elif isinstance(record, RoundSummary):
            self._round(record)
        self._writer.flush()

    def _report(self, report: Report) -> None:
        values = {
            "reward": report.reward_mean,
            "reward_std": report.reward_std,
            "completion_length": report.completion_length,
            "degenerate": report.degenerate,
            "informative": report.informative,
            "groups": report.groups,
            **report.metrics,
        }
        for name, value in values.items():
            self._scalar(f"{name}/{report.client}", value, report.round)
        for stage, seconds in report.seconds.items():
            self._client_seconds[stage] += seconds

    def _round(self, summary: RoundSummary) -> None:
        per_client = {"weight": summary.weights, "gain": summary.gains, "delta_norm": summary.delta_norms}
        for name, of_clients in per_client.items():
            for client, value in of_clients.items():
                self._scalar(f"{name}/{client}", value, summary.round)
        for stage, seconds in {**self._client_seconds, **summary.seconds}.items():
            self._scalar(f"time/{stage}", seconds, summary.round)
        self._client_seconds.clear()
        self._scalar("bytes/uplink", sum(summary.uplink_bytes.values()), summary.round)
        self._scalar("bytes/float32", summary.dense_bytes * len(summary.uplink_bytes), summary.round)
        self._scalar("server/update_norm", summary.update_norm, summary.round)
        self._scalar("server/quarantined", len(summary.quarantined), summary.round)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(tag, value, step)
