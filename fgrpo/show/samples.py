"""What the global model answered to some held-out prompts, before training and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.records import TEST_SET, Evaluation, Sample
from fgrpo.show.summary import RunSummary


@dataclass(frozen=True)
class Compared:
    """One prompt with the model's answers.

    Attributes:
        reference: the right answer; empty where the task has none.
        answers: (when, answer) in order.
    """

    prompt: str
    reference: str
    answers: Sequence[tuple[str, Sample]]


def compared_samples(summary: RunSummary) -> dict[str, list[Compared]]:
    """Return the samples of the clients that are shown one by one, and of the run's test set, where there are any."""
    evaluations = {client: summary.evaluations[client] for client in summary.shown()}
    if summary.test_set:
        evaluations[TEST_SET] = summary.test_set
    return {client: found for client, measured in evaluations.items() if (found := _compared(measured))}


def _compared(evaluations: Mapping[int, Evaluation]) -> list[Compared]:
    """Put the first and the last answers side by side; the prompts are the same every time."""
    sampled = {n: evaluation.samples for n, evaluation in evaluations.items() if evaluation.samples}
    rounds = sorted({min(sampled), max(sampled)}) if sampled else []
    return [
        Compared(same[0].prompt, same[0].answer, [(_when(n), sample) for n, sample in zip(rounds, same, strict=True)])
        for same in zip(*(sampled[n] for n in rounds), strict=True)
    ]


def _when(round_number: int) -> str:
    return f"after round {round_number}" if round_number else "before"
