"""What a client's relative gain is measured on, by the names that `aggregation.gain` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fgrpo.config import AggregationConfig
from fgrpo.records import ClientHistory, Report, Score


@dataclass(frozen=True)
class Trials:
    """The server's own scores on the public prompts.

    Attributes:
        before: of the global model.
        after: by client, of the global model with the client's delta on top.
    """

    before: Score
    after: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """What a client came to, and what that is compared with.

    Attributes:
        deviation: standard deviation of the single values that the baseline is a mean of.
    """

    now: Score
    baseline: float
    deviation: float


Measure = Callable[[Report, ClientHistory | None], Standing | None]  # None where there is nothing to compare with

_OURS = "docs/aggregation.md"
GAINS = {  # one line and a source each
    "reward": ("the reward of a client's training, against its own past", "arXiv 2606.03094"),
    "heldout": ("a client's greedy score on its held-out prompts, against its own past", _OURS),
    "server": ("the server's score on public prompts of the model with the delta, against without", _OURS),
}


def own_score(report: Report, config: AggregationConfig) -> Score:
    """Return what a report says of what gains are measured on; the history keeps averages of it."""
    if config.gain == "heldout":
        assert report.heldout is not None  # validation's check
        return report.heldout
    return Score(report.reward_mean, report.reward_std, report.sequences)


def make_measure(config: AggregationConfig, trials: Trials | None) -> Measure:
    """Return the measure that a configuration names.

    Args:
        trials: of the round; None where the server scores nothing.
    """

    def against_own_past(report: Report, past: ClientHistory | None) -> Standing | None:
        return None if past is None else Standing(own_score(report, config), past.baseline, past.deviation)

    def against_the_model(report: Report, past: ClientHistory | None) -> Standing | None:
        return None if trials is None else Standing(trials.after[report.client], trials.before.mean, trials.before.std)

    return against_the_model if config.gain == "server" else against_own_past
