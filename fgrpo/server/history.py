"""What the server remembers of its clients and of its own steps: moving averages, renewed after every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fgrpo.config import AggregationConfig, Config
from fgrpo.records import ClientHistory, Report, ServerState, StepHistory
from fgrpo.server.aggregation import WEIGHTINGS, gains
from fgrpo.server.aggregation.gain import Trials, own_score
from fgrpo.server.averages import mean_agreement, moved
from fgrpo.server.geometry import Geometry
from fgrpo.server.step_size import STEP_SIZES, chosen_step
from fgrpo.server.step_size.agreement import DECAY


@dataclass(frozen=True)
class Learned:
    """What a round adds to the history, and what of it the metrics show.

    Attributes:
        clients, step: the histories after the round.
        gains: each client's relative gain, whatever the rule.
        agreement: each client's agreement with its own last delta; empty unless a rule asks for it.
    """

    clients: Mapping[str, ClientHistory]
    step: StepHistory
    gains: Mapping[str, float]
    agreement: Mapping[str, float] = field(default_factory=dict)


def learn(
    state: ServerState,
    reports: Sequence[Report],
    weights: Mapping[str, float],
    geometry: Geometry,
    config: Config,
    trials: Trials | None = None,
) -> Learned:
    """Return the history after a round whose replies got these weights."""
    aggregation = config.aggregation
    by_client = dict(zip(weights, gains(aggregation, reports, state.history, trials), strict=True))
    agreement = geometry.agreement if compares_deltas(config) else {}
    return Learned(
        updated_clients(state.history, reports, by_client, agreement, aggregation),
        StepHistory(
            state.step.rounds + 1,
            moved(state.step.agreement, mean_agreement(weights, agreement), DECAY),
        ),
        by_client,
        agreement,
    )


def compares_deltas(config: Config) -> bool:
    """Whether the weighting or the step size looks at clients' last deltas, so that these must be kept."""
    return WEIGHTINGS[config.aggregation.rule].compares_deltas or STEP_SIZES[chosen_step(config)].compares_deltas


def updated_clients(
    history: Mapping[str, ClientHistory],
    reports: Sequence[Report],
    gains: Mapping[str, float],
    agreement: Mapping[str, float],
    config: AggregationConfig,
) -> dict[str, ClientHistory]:
    """Return the clients' histories after a round: exponential moving averages that start at a first value.

    `baseline <- decay * baseline + (1 - decay) * mean` of what gains are measured on; the same for its deviation and
    for the agreement; `gain <- smoothing * gain + (1 - smoothing) * gain of the round`.
    """
    decay, smoothing, updated = config.decay, config.smoothing, dict(history)
    for report in reports:
        old, now = history.get(report.client), own_score(report, config)
        gain = (1 - smoothing) * gains[report.client]
        if old is None:
            updated[report.client] = ClientHistory(now.mean, now.std, 1, gain, last=report.round)
        else:
            updated[report.client] = ClientHistory(
                decay * old.baseline + (1 - decay) * now.mean,
                decay * old.deviation + (1 - decay) * now.std,
                old.rounds + 1,
                smoothing * old.gain + gain,
                moved(old.agreement, agreement.get(report.client), decay),
                report.round,
            )
    return updated
