"""What a run came to, in words: pure functions over its records.

The first finding is about the whole run, those after it about single clients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fgrpo.show import remedies
from fgrpo.show.changes import Change, mean_change
from fgrpo.show.evidence import Evidence, arrow, listed, percents, span
from fgrpo.show.standing import EQUAL, Cause, Lag, unasked
from fgrpo.show.summary import RunSummary
from fgrpo.show.text import counted, named, percent

Kind = Literal[
    "learning",
    "solved",
    "stalled",
    "collapsing",
    "diverging",
    "reward without accuracy",
    "undecided",
    "starved",
    "small",
    "heavy",
    "not asked",
    "carried",
    "harmed",
]

_REMARKS = ("small", "heavy", "not asked")  # worth knowing, and nothing went wrong

_SOLVED = 0.95  # accuracy from which equal rewards are no loss
_COARSE = 0.15  # a change of accuracy: held-out prompts that cannot tell this much are too few
_ENTROPY_LEFT = 0.2  # against the first rounds'
_SHORTER, _LONGER = 0.4, 2.5  # completions, against the first rounds'
_GROWN = 10.0  # gradients and steps, against the first rounds'


@dataclass(frozen=True)
class Finding:
    """One thing that a run's records show.

    Attributes:
        says: the finding, in a sentence.
        evidence: the numbers that it stands on.
        remedy: what to look at or to try; empty where nothing is to be done.
    """

    kind: Kind
    says: str
    evidence: str
    remedy: str = ""

    @property
    def alarming(self) -> bool:
        return bool(self.remedy) and self.kind not in _REMARKS


def verdict(summary: RunSummary) -> tuple[Finding, ...]:
    """Return what the records show, the run's own finding first; there is always that one."""
    evidence = Evidence(summary)
    of_run = next(filter(None, (check(evidence) for check in _OF_RUN)), None) or _undecided(evidence)
    return (of_run, *(finding for check in _OF_CLIENTS for finding in check(evidence, of_run.kind)))


def _not_finite(run: Evidence) -> Finding | None:
    bad = list(run.not_finite())
    if not bad or run.learned:
        return None
    return Finding("diverging", "Diverging: training gave numbers that are not finite.", listed(bad), remedies.DIVERGED)


def _collapsing(run: Evidence) -> Finding | None:
    if run.learned or any(change.up for change in run.rewards.values()):
        return None
    first, equal = run.equal_groups(rounds=run.rounds[:1]), run.equal_groups()
    if run.rewards_fell and first is not None and equal is not None and first < EQUAL <= equal:
        says = "Collapsed: rewards fell since the first round, and hardly any group tells answers apart any more."
        evidence = [run.since_first_in_words(), _equal_in_words(run, equal), *run.accuracy_in_words()]
        return Finding("collapsing", says, "; ".join(evidence), remedies.rewards_fell(run))
    entropy = run.mean_over_clients(lambda report: report.metrics.get("entropy"))
    length = run.mean_over_clients(lambda report: report.completion_length)
    signs = []
    if entropy and entropy.factor < _ENTROPY_LEFT:
        signs.append(f"entropy {arrow(entropy)} nats a token")
    if length and not _SHORTER <= length.factor <= _LONGER:
        signs.append(f"completions {arrow(length)} tokens long")
    if not signs:
        return None
    says = "Collapsing: answers lose their variety or change their length, and nothing is gained by it."
    return Finding("collapsing", says, "; ".join([*signs, *run.accuracy_in_words()]), remedies.collapsed(run))


def _diverging(run: Evidence) -> Finding | None:
    if run.learned:
        return None
    grown = {
        "gradient norm": run.mean_over_clients(lambda report: report.metrics.get("grad_norm")),
        "server's step": run.steps,
    }
    signs = [f"{what} {arrow(change)}" for what, change in grown.items() if change and change.factor > _GROWN]
    if run.since_best and run.since_best[1].down:
        best, change = run.since_best
        signs.append(f"mean held-out accuracy {percents(change)} since {f'round {best}' if best else 'the start'}")
    downs = [client for client, change in run.rewards.items() if change.down]
    if run.mean_accuracy is None and len(downs) > len(run.rewards) / 2:
        signs.append(listed(map(run.reward_in_words, downs)))
    if not signs:
        return None
    says = "Diverging: the model gets worse, or its steps grow without bound."
    return Finding("diverging", says, "; ".join(signs), remedies.DIVERGED)


def _solved(run: Evidence) -> Finding | None:
    equal = run.equal_groups()
    if equal is None or equal < EQUAL or not run.mean_accuracy or run.mean_accuracy.after < _SOLVED:
        return None
    says = "Solved: the held-out prompts are answered, and little is left to learn from."
    return Finding("solved", says, "; ".join([_equal_in_words(run, equal), *run.accuracy_in_words()]))


def _stalled(run: Evidence) -> Finding | None:
    equal = run.equal_groups()
    if equal is None or equal < EQUAL:
        return None
    says = "Stalled: the rewards of nearly every group are equal, and such a group teaches nothing."
    evidence = "; ".join([_equal_in_words(run, equal), *run.accuracy_in_words()])
    return Finding("stalled", says, evidence, remedies.stalled(run))


def _equal_in_words(run: Evidence, equal: float) -> str:
    return f"{percent(equal)} of prompt groups had equal rewards in {span(run.late)}"


def _reward_without_accuracy(run: Evidence) -> Finding | None:
    ups = [client for client in run.accuracy if client in run.rewards and run.rewards[client].up]
    if run.mean_accuracy is None or not _flat(run.mean_accuracy) or not ups or len(ups) < len(run.accuracy) / 2:
        return None
    evidence = [*run.accuracy_in_words(), listed(map(run.reward_in_words, ups))]
    return Finding(
        "reward without accuracy", "Reward goes up while accuracy does not.", "; ".join(evidence), remedies.gamed(run)
    )


def _learning(run: Evidence) -> Finding | None:
    if not run.learned:
        return None
    if run.mean_accuracy is not None:
        return Finding("learning", "Learning: held-out accuracy rose.", "; ".join(run.accuracy_in_words()))
    ups = [client for client, change in run.rewards.items() if change.up]
    says = "Learning, as far as rewards tell: accuracy after training was not measured."
    evidence = f"reward clearly up at {len(ups)} of {len(run.rewards)} clients: {listed(map(run.reward_in_words, ups))}"
    return Finding("learning", says, evidence)


def _undecided(run: Evidence) -> Finding:
    says, remedy = "Undecided: no change beyond what chance gives.", remedies.TOO_LITTLE
    if run.mean_accuracy is None and not run.rewards:
        says = "Undecided: so few rounds, and no accuracy after training, tell nothing."
    elif run.least_change > _COARSE:
        says = "Undecided: too few held-out prompts to tell, and rewards do not tell either."
        remedy = remedies.TOO_FEW_PROMPTS
    ups, downs = (sum(getattr(change, way) for change in run.rewards.values()) for way in ("up", "down"))
    rewards = [f"reward clearly up at {ups} of {len(run.rewards)} clients"] if run.rewards else []
    rewards += [f"clearly down at {downs}"] if downs else []
    rounds = counted(len(run.rounds), "round")
    evidence = [*run.accuracy_in_words(), run.prompts_in_words, *rewards, rounds]
    return Finding("undecided", says, "; ".join(filter(None, evidence)), remedy)


def _harmed(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    for client, change in run.accuracy.items():
        others = mean_change([other for name, other in run.accuracy.items() if name != client])
        if change.down and others and not others.down:
            evidence = f"{client} {percents(change)}; the others' mean {percents(others)}"
            yield Finding("harmed", f"Harmed: {client} loses while the others do not.", evidence, remedies.PULLED)


def _starved(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    found = {client: lag for client, lag in run.lags.items() if lag.cause != "few rows"}
    if found:
        says = f"Starved: {named(found)} hardly take{_s(found)} part."
        yield Finding("starved", says, _lags_in_words(found), remedies.starving(lag.cause for lag in found.values()))


def _small(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    few_rows: Cause = "few rows"
    found = {client: lag for client, lag in run.lags.items() if lag.cause == few_rows}
    if found:
        says = f"Small: {named(found)} weigh{_s(found)} little, having few rows."
        yield Finding("small", says, _lags_in_words(found), remedies.starving([few_rows]))


def _heavy(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    found = {client: weighed for client, weighed in run.weights.items() if weighed.beyond_rows}
    if found:
        says = f"Heavy: {named(found)} weigh{_s(found)} far more than the share of rows."
        evidence = listed(f"{client}: {weighed.against_rows()}" for client, weighed in found.items())
        yield Finding("heavy", says, evidence, remedies.BOUND)


def _not_asked(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    if found := unasked(run.summary):
        says = f"Not asked: {named(found)} took part in no round, as participation is drawn."
        asked = fmean(len(round_.weights) + len(round_.quarantined) for round_ in run.summary.rounds)
        clients = len([data for data in run.summary.data if data.rows != 0])
        of_clients = f"of {counted(round(asked), 'client')}, drawn from {clients}"
        evidence = f"{counted(len(run.rounds), 'round')} {of_clients}"
        yield Finding("not asked", says, evidence)


def _lags_in_words(lags: Mapping[str, Lag]) -> str:
    return listed(f"{client}: {lag.evidence}" for client, lag in lags.items())


def _stalled_clients(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    equal = {client: share for client in run.summary.clients if (share := run.equal_groups(client)) is not None}
    solved = {client for client, change in run.accuracy.items() if change.after >= _SOLVED}
    found = {client: share for client, share in equal.items() if share >= EQUAL and client not in solved}
    if found and of_run not in ("stalled", "solved", "collapsing"):
        shares = listed(f"{client}: {percent(share)}" for client, share in found.items())
        says = f"Stalled: {named(found)} learn{_s(found)} nothing from own prompts."
        yield Finding(
            "stalled", says, f"groups with equal rewards in {span(run.late)}: {shares}", remedies.all_equal(run)
        )


def _reward_without_accuracy_at_clients(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    not_up = [client for client, change in run.accuracy.items() if _flat(change) and change.after < _SOLVED]
    found = [client for client in not_up if client in run.rewards and run.rewards[client].up]
    if found and of_run != "reward without accuracy":
        evidence = [f"{run.reward_in_words(client)}, accuracy {percents(run.accuracy[client])}" for client in found]
        says = f"Reward goes up while accuracy does not at {named(found)}."
        yield Finding("reward without accuracy", says, listed(evidence), remedies.gamed(run))


def _flat(change: Change) -> bool:
    """Whether it did not rise, and so few prompts cannot be why that was not seen."""
    return change.not_up and (change.difference <= 0 or 2 * change.error <= _COARSE)


def _carried(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    for client, change in run.accuracy.items():
        lag, reports = run.lags.get(client), run.summary.reports[client].values()
        why = lag.evidence if lag else ""
        equal = fmean(report.degenerate for report in reports) if reports else 0.0
        if not why and equal >= EQUAL:
            why = f"{percent(equal)} of its own groups had equal rewards"
        if change.up and why and len(run.accuracy) > 1:
            says = f"Carried: {client} gains by what the others learn."
            yield Finding("carried", says, f"{client} {percents(change)}; {why}")


def _s(found: Collection[str]) -> str:
    return "s" if len(found) == 1 else ""


_OF_RUN: Sequence[Callable[[Evidence], Finding | None]] = (
    _not_finite,
    _collapsing,
    _diverging,
    _solved,
    _reward_without_accuracy,
    _stalled,
    _learning,
)
_OF_CLIENTS: Sequence[Callable[[Evidence, Kind], Iterator[Finding]]] = (
    _harmed,
    _starved,
    _small,
    _stalled_clients,
    _reward_without_accuracy_at_clients,
    _heavy,
    _carried,
    _not_asked,
)
