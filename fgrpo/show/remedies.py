"""What to look at or to try, by what a run's records show."""

from __future__ import annotations

from collections.abc import Iterable

from fgrpo.show.evidence import Evidence
from fgrpo.show.standing import Cause

DIVERGED = "Lower train.lr or server.lr, fewer train.local_steps, or aggregation.robust: clipped_mean."
PULLED = "Its task pulls another way: another aggregation.rule, fewer train.local_steps, a lower server.lr."
TOO_LITTLE = "More rounds (`fgrpo resume RUN --rounds N`), or more evaluation.prompts."
TOO_FEW_PROMPTS = (
    "More evaluation.prompts, in a new run: four times as many tell half the difference. "
    "Or more rounds: `fgrpo resume RUN --rounds N`."
)
BOUND = "Few rows are soon learned by heart. A lower aggregation.cap bounds a client's weight."

_STARVING: dict[Cause, str] = {
    "no rows": "More rows, or fewer evaluation.prompts, which are held out of them.",
    "quarantined": "The table of quarantined replies has every reason; log.txt, where there is one, tracebacks.",
    "unrewarded": "Its reward functions fail or do not apply: the data table has counts, metrics.jsonl a failure.",
    "few rows": "To weigh clients by rows is what such a rule does: more rows, aggregation.n_k: sequences, or another "
    "aggregation.rule.",
    "uninformative": "Harder or easier tasks for it, a larger rollout.group_size, or some aggregation.floor.",
    "rule": "Some aggregation.floor, or another aggregation.rule.",
}


def read_samples(run: Evidence) -> str:
    """Return how to see what the model answers: samples are kept only where they are asked for."""
    return "read the samples" if run.sampled else "keep samples (--evaluation.samples 2) and read them"


def collapsed(run: Evidence) -> str:
    return f"Lower train.lr, some train.entropy_coef or train.beta, a larger train.clip_high; {read_samples(run)}."


def rewards_fell(run: Evidence) -> str:
    return f"Lower train.lr, or fewer train.local_steps: the model unlearned what it could; {read_samples(run)}."


def stalled(run: Evidence) -> str:
    """Return what equal rewards of a whole run call for: whether they are 0, and whether they ever were not."""
    constant, read = run.constant_rewards, read_samples(run)
    if constant == {0.0}:
        why = "Every reward is 0 from the first round on: the tasks are too hard, or the reward function never matches"
        return f"{why}; {read}."
    if constant:
        why = (
            "Every reward is the same from the first round on: too easy tasks, or a reward that tells no answers apart"
        )
        return f"{why}; {read}."
    if {report.reward_mean for n in run.late for report in run.reports(n)} == {0.0}:
        return f"Every reward is 0 by now, few were more before: easier tasks, or a larger rollout.group_size; {read}."
    if sum(change.up for change in run.since_first.values()) > len(run.since_first) / 2 and not run.learned:
        return gamed(run)
    return all_equal(run)


def all_equal(run: Evidence) -> str:
    return f"Harder or easier tasks, a larger rollout.group_size, a higher rollout.temperature; {read_samples(run)}."


def gamed(run: Evidence) -> str:
    """Return why reward alone may rise: other functions than the one that judges, or less than its full marks."""
    if run.shaped:
        why = "The reward may pay for something else than being right: the first function judges, the others only shape"
    else:
        why = "Accuracy is the share of answers given exactly 1: partial credit below that raises reward alone"
    return f"{why}; {read_samples(run)}."


def starving(causes: Iterable[Cause]) -> str:
    return " ".join(_STARVING[cause] for cause in dict.fromkeys(causes))
