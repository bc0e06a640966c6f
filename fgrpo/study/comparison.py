"""What a study found: every arm in every scenario, measured and compared with the reference arm seed by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

import numpy as np

from fgrpo.records import Evaluation
from fgrpo.show.changes import accuracy_change, mean_change
from fgrpo.study.intervals import Estimate, bootstrap, mean_estimate, t_interval
from fgrpo.study.measures import Curve, cost_of
from fgrpo.study.plan import Pair
from fgrpo.study.result import Result
from fgrpo.study.spec import Study
from fgrpo.study.tuning import Choice, Find, played

_NEAR_BEST = 0.9


@dataclass(frozen=True)
class Runs:
    """An arm in a scenario, with what it came to by seed."""

    pair: Pair
    choice: Choice | None
    results: Mapping[int, Result]
    curves: Mapping[int, Curve]


@dataclass(frozen=True)
class Against:
    """An arm against the reference arm, over the seeds that both have.

    Attributes:
        seeds: how many both have.
        final: difference of the final accuracies.
        worst: difference of the worst clients' final accuracies.
        speed_up: rounds in which the reference's mean curve reaches its own final accuracy, divided by the rounds in
            which this arm's mean curve does; 0 if it never does. Its interval is by the bootstrap over seeds. None if
            the reference's mean curve is as high from the start: it has learned nothing.
        speed_up_by_seed: the geometric mean of the same per seed, its interval by t on the logarithms; None if a seed
            never gets there, or where there is no speed_up.
        sample_efficiency: `speed_up` in completions for rounds; None also where nobody knows how many were sampled.
    """

    seeds: int
    final: Estimate
    worst: Estimate
    speed_up: Estimate | None
    speed_up_by_seed: Estimate | None
    sample_efficiency: Estimate | None


@dataclass(frozen=True)
class Row:
    """What an arm came to in a scenario; None where there is nothing to tell.

    Attributes:
        before: accuracy before training.
        learned: whether it rose by more than two standard errors, prompts taken as binomial samples; where nobody knows
            how many prompts there were, whether it rose at all.
        final, worst: accuracy over the last evaluations: of all clients that count, of the worst one.
        final_sd, worst_sd: standard deviation over seeds.
        deviation: of the mean accuracy over the last evaluations of a run, on average.
        rounds_to_90: median rounds to 90% of the best final accuracy that a federated arm has in this scenario.
        rounds_to_reference: median rounds to the reference arm's final accuracy with the same seed.
        of_centralised: final accuracy as a share of the centralised baseline's.
        quarantined: replies of a run that were not used, on average.
        completions: that the clients of a run sampled, on average; None where that is not known of every run.
        against: None for the reference arm itself.
    """

    scenario: str
    arm: str
    seeds: int
    choice: Choice
    before: float
    learned: bool
    final: float
    final_sd: float | None
    worst: float
    worst_sd: float | None
    deviation: float
    rounds_to_90: float
    rounds_to_reference: float | None
    of_centralised: float | None
    quarantined: float
    completions: float | None
    against: Against | None


def runs(study: Study, pairs: Sequence[Pair], find: Find) -> list[Runs]:
    """Return all that is finished so far."""
    found = []
    for pair in pairs:
        choice, results = played(pair, study, find)
        curves = {
            seed: Curve.of(result.accuracy, pair.scenario.measure, result.completions)
            for seed, result in results.items()
        }
        found.append(Runs(pair, choice, results, curves))
    return found


def rows(study: Study, all_runs: Sequence[Runs]) -> list[Row]:
    """Return a row for each arm in each scenario of which at least one seed is finished."""
    found: list[Row] = []
    for scenario in study.scenarios:
        group = [run for run in all_runs if run.pair.scenario == scenario and run.curves]
        finals = {run.pair.arm.name: fmean(c.final(study.last) for c in run.curves.values()) for run in group}
        federated = [finals[run.pair.arm.name] for run in group if run.pair.arm.baseline is None]
        reference = next((run for run in group if run.pair.arm.name == study.reference), None)
        central = next((finals[r.pair.arm.name] for r in group if r.pair.arm.baseline == "centralised"), None)
        found += [_row(run, reference, max(federated or finals.values()), central, study.last) for run in group]
    return found


def _row(run: Runs, reference: Runs | None, best: float, central: float | None, last: int) -> Row:
    curves = run.curves
    finals = [curve.final(last) for curve in curves.values()]
    worsts = [curve.worst(last) for curve in curves.values()]
    others = {} if reference is None else reference.curves
    to_reference = [
        cost_of(others[seed].final(last), curve.rounds, curve.mean) for seed, curve in curves.items() if seed in others
    ]
    assert run.choice is not None  # or there would be no curve
    return Row(
        scenario=run.pair.scenario.name,
        arm=run.pair.arm.name,
        seeds=len(curves),
        choice=run.choice,
        before=fmean(curve.mean[0] for curve in curves.values()),
        learned=_learned(run, last),
        final=fmean(finals),
        final_sd=stdev(finals) if len(finals) > 1 else None,
        worst=fmean(worsts),
        worst_sd=stdev(worsts) if len(worsts) > 1 else None,
        deviation=fmean(curve.deviation(last) for curve in curves.values()),
        rounds_to_90=median(cost_of(_NEAR_BEST * best, curve.rounds, curve.mean) for curve in curves.values()),
        rounds_to_reference=median(to_reference) if to_reference else None,
        of_centralised=fmean(finals) / central if central else None,
        quarantined=fmean(result.quarantined for result in run.results.values()),
        completions=fmean(curve.completions[-1] for curve in curves.values()) if _counted(curves.values()) else None,
        against=None if run is reference else against(curves, others, last),
    )


def _learned(run: Runs, last: int) -> bool:
    changes = []
    for seed, curve in run.curves.items():
        finals, prompts = curve.finals(last), run.results[seed].prompts
        starts = {client: line[0] for client, line in curve.clients.items() if not math.isnan(line[0])}
        ends = [
            [
                Evaluation(client, n, prompts[client], accuracy[client], 0.0)
                for n, accuracy in enumerate((starts, finals))
            ]
            for client in finals
            if client in starts and client in prompts
        ]
        if change := mean_change([accuracy_change(before, after) for before, after in ends]):
            changes.append(change)
    if change := mean_change(changes):
        return change.up
    return fmean(curve.final(last) - curve.mean[0] for curve in run.curves.values()) > 0


def against(curves: Mapping[int, Curve], reference: Mapping[int, Curve], last: int) -> Against | None:
    """Compare an arm's curves with the reference arm's, by seed; None if they have no seed in common."""
    both = [(curves[seed], reference[seed]) for seed in curves if seed in reference]
    if not both:
        return None
    speed_up = _ratio_of_costs(both, last, lambda curve: curve.rounds)
    counted = _counted([curve for pair in both for curve in pair])
    return Against(
        seeds=len(both),
        final=mean_estimate([ours.final(last) - theirs.final(last) for ours, theirs in both]),
        worst=mean_estimate([ours.worst(last) - theirs.worst(last) for ours, theirs in both]),
        speed_up=speed_up,
        speed_up_by_seed=None if speed_up is None else _speed_up_by_seed(both, last),
        sample_efficiency=_ratio_of_costs(both, last, lambda curve: curve.completions) if counted else None,
    )


def _counted(curves: Iterable[Curve]) -> bool:
    return all(curve.completions for curve in curves)


def _ratio_of_costs(
    both: Sequence[tuple[Curve, Curve]], last: int, costs: Callable[[Curve], Sequence[float]]
) -> Estimate | None:
    """Compare the mean curves: single ones cross a level by chance, long before they stay above it."""
    (ours_SE, our_costs_SE), (theirs_SE, their_costs_SE) = (_stacked([pair[i] for pair in both], costs) for i in (0, 1))
    tail = max(1, min(last, theirs_SE.shape[1] - 1))
    mean_E = theirs_SE.mean(axis=0)
    if mean_E[0] >= mean_E[-tail:].mean():
        return None

    def ratios(index_RS: np.ndarray) -> np.ndarray:
        ours, our_costs, theirs, their_costs = (
            numbers_SE[index_RS].mean(axis=1).tolist()
            for numbers_SE in (ours_SE, our_costs_SE, theirs_SE, their_costs_SE)
        )
        return np.array(
            [
                _ratio(cost_of(goal, their_cost, their), cost_of(goal, our_cost, our))
                for our, our_cost, their, their_cost in zip(ours, our_costs, theirs, their_costs, strict=True)
                for goal in [fmean(their[-tail:])]
            ]
        )

    (value,) = ratios(np.arange(len(both))[None])
    return Estimate(float(value), None, bootstrap(len(both), ratios))


def _stacked(curves: Sequence[Curve], costs: Callable[[Curve], Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracies and costs [S, E] at the E rounds that all curves have."""
    rounds = sorted(set.intersection(*(set(curve.rounds) for curve in curves)))
    places = [(curve, [curve.rounds.index(number) for number in rounds]) for curve in curves]
    accuracies_SE = np.array([[curve.mean[at] for at in line] for curve, line in places])
    return accuracies_SE, np.array([[costs(curve)[at] for at in line] for curve, line in places])


def _speed_up_by_seed(both: Sequence[tuple[Curve, Curve]], last: int) -> Estimate | None:
    ratios = []
    for ours, theirs in both:
        target = theirs.final(last)
        ratios.append(_ratio(cost_of(target, theirs.rounds, theirs.mean), cost_of(target, ours.rounds, ours.mean)))
    if not all(0 < ratio < math.inf for ratio in ratios):
        return None
    logs = [math.log(ratio) for ratio in ratios]
    interval = t_interval(logs)
    if interval is not None:
        interval = type(interval)(math.exp(interval.low), math.exp(interval.high))
    return Estimate(math.exp(fmean(logs)), interval, None)


def _ratio(theirs: float, ours: float) -> float:
    """Return how many times fewer rounds ours are. Both at once, at the start: 1."""
    if theirs == ours:
        return 1.0
    return math.inf if ours == 0 else theirs / ours
