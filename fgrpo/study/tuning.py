"""Which value of the tuned key an arm is reported at in a scenario, from what its runs came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fgrpo.study.measures import Curve
from fgrpo.study.plan import Cell, Pair
from fgrpo.study.result import Result
from fgrpo.study.spec import Study

Find = Callable[[Cell], Result | None]  # what a cell came to; None if it is not finished


@dataclass(frozen=True)
class Choice:
    """The values of a tuned key.

    Attributes:
        on_tuning_seeds: by value, the mean final accuracy there; None where a run failed or is missing.
        finalists: the values that are played with the reported seeds, the best on the tuning seeds first; None alone if
            nothing is tuned.
        on_reported_seeds: by finalist, the mean final accuracy there; None where no run is finished.
        by_seed: the finalist that each reported seed is reported at, of the seeds of which one is finished.
        at_edge: whether one of these is the smallest or the largest that was tried, so that the best may lie beyond.
    """

    on_tuning_seeds: Mapping[object, float | None]
    finalists: tuple[object, ...]
    on_reported_seeds: Mapping[object, float | None]
    by_seed: Mapping[int, object]
    at_edge: bool

    @property
    def text(self) -> str:
        """The values, that of most seeds first, with how many seeds if there are several; empty if nothing is tuned.

        The finalists if no reported seed is finished.
        """
        if self.finalists == (None,):
            return ""
        if not self.by_seed:
            return ", ".join(map(str, self.finalists))
        counts = Counter(self.by_seed.values()).most_common()
        return ", ".join(f"{value}" if len(counts) == 1 else f"{value} ({seeds})" for value, seeds in counts)


def finalists(pair: Pair, study: Study, find: Find) -> tuple[object, ...]:
    """Return the values to be played with the reported seeds, the best first; none if every one failed."""
    return _finalists(pair, study, _on_tuning_seeds(pair, study, find))


def played(pair: Pair, study: Study, find: Find) -> tuple[Choice | None, Mapping[int, Result]]:
    """Return a pair's choice, None if every value failed, and what it came to by seed, as far as that is finished."""
    tuning = _on_tuning_seeds(pair, study, find)
    last = _finalists(pair, study, tuning)
    if not last:
        return None, {}
    results = {value: _by_seed(pair.reported(value, study.seeds), find) for value in last}
    finals = {
        value: {seed: _final(result, pair, study) for seed, result in by_seed.items()}
        for value, by_seed in results.items()
    }
    by_seed = {seed: best_by_others(seed, finals) for seed in study.seeds if any(seed in f for f in finals.values())}
    means = {value: fmean(found.values()) if found else None for value, found in finals.items()}
    choice = Choice(tuning, last, means, by_seed, _at_edge(set(by_seed.values()) or {last[0]}, list(pair.configs)))
    return choice, {seed: results[value][seed] for seed, value in by_seed.items()}


def best_by_others(seed: int, finals: Mapping[object, Mapping[int, float]]) -> object:
    """Return the value that a seed is reported at: the one with the highest mean over the other seeds.

    Args:
        finals: final accuracy by value and seed, the values in the order that decides where there is no other seed.
            Values without this seed do not compete; the others do on the seeds that all of them have.
    """
    there = [value for value, by_seed in finals.items() if seed in by_seed]
    others = set.intersection(*(set(finals[value]) for value in there)) - {seed}
    return max(there, key=lambda value: fmean(finals[value][other] for other in others) if others else 0.0)


def _on_tuning_seeds(pair: Pair, study: Study, find: Find) -> Mapping[object, float | None]:
    found: dict[object, float | None] = {}
    for value in pair.configs if pair.tuning_seeds else ():
        cells = [cell for cell in pair.tuning() if cell.value == value]
        by_seed = _by_seed(cells, find)
        whole = len(by_seed) == len(cells)
        found[value] = fmean(_final(result, pair, study) for result in by_seed.values()) if whole else None
    return found


def _finalists(pair: Pair, study: Study, tuning: Mapping[object, float | None]) -> tuple[object, ...]:
    if study.tune is None or not pair.tuning_seeds:
        return (None,)
    known = {value: accuracy for value, accuracy in tuning.items() if accuracy is not None}
    return tuple(sorted(known, key=lambda value: -known[value]))[: study.tune.finalists_of(pair.arm)]


def _by_seed(cells: Sequence[Cell], find: Find) -> dict[int, Result]:
    return {cell.seed: result for cell in cells if (result := find(cell)) is not None}


def _final(result: Result, pair: Pair, study: Study) -> float:
    return Curve.of(result.accuracy, pair.scenario.measure).final(study.last)


def _at_edge(chosen: set[object], tried: Sequence[object]) -> bool:
    numbers = [value for value in tried if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) > 1 and not chosen.isdisjoint((min(numbers), max(numbers)))
