"""What a run came to, in words: pure functions over its records.

The first finding is about the whole run, those after it about single clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fgrpo.show.changes import mean_change
from fgrpo.show.evidence import Evidence, arrow, listed, percents, span
from fgrpo.show.summary import RunSummary
from fgrpo.show.text import named, percent

Kind = Literal[
    "learning",
    "solved",
    "stalled",
    "collapsing",
    "diverging",
    "reward without accuracy",
    "undecided",
    "starved",
    "carried",
    "harmed",
]

_SOLVED = 0.95  # accuracy from which equal rewards are no loss
_EQUAL = 0.9  # share of groups with equal rewards from which there is nothing to learn from
_ENTROPY_LEFT = 0.2  # against the first rounds'
_SHORTER, _LONGER = 0.4, 2.5  # completions, against the first rounds'
_GROWN = 10.0  # gradients and steps, against the first rounds'


@dataclass(frozen=True)
class Finding:
    """One thing that a run's records show.

    Attributes:
        says: the finding, in a sentence.
        evidence: the numbers that it stands on.
        remedy: what to look at or to try; empty where nothing is wrong.
    """

    kind: Kind
    says: str
    evidence: str
    remedy: str = ""


def verdict(summary: RunSummary) -> tuple[Finding, ...]:
    """Return what the records show, the run's own finding first; there is always that one."""
    evidence = Evidence(summary)
    of_run = next(filter(None, (check(evidence) for check in _OF_RUN)), None) or _undecided(evidence)
    return (of_run, *(finding for check in _OF_CLIENTS for finding in check(evidence, of_run.kind)))


def _not_finite(run: Evidence) -> Finding | None:
    bad = list(run.not_finite())
    if not bad or run.learned:
        return None
    return Finding("diverging", "Diverging: training gave numbers that are not finite.", listed(bad), _DIVERGED)


def _collapsing(run: Evidence) -> Finding | None:
    if run.learned or any(change.up for change in run.rewards.values()):
        return None
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
    return Finding("collapsing", says, "; ".join([*signs, *run.accuracy_in_words()]), _COLLAPSED)


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
    if not signs:
        return None
    says = "Diverging: the model gets worse, or its steps grow without bound."
    return Finding("diverging", says, "; ".join(signs), _DIVERGED)


def _stalled(run: Evidence) -> Finding | None:
    equal = run.equal_groups()
    if equal is None or equal < _EQUAL:
        return None
    share = f"{percent(equal)} of prompt groups had equal rewards in {span(run.late)}"
    evidence = "; ".join([share, *run.accuracy_in_words()])
    if run.mean_accuracy and run.mean_accuracy.after >= _SOLVED:
        says = "Solved: the held-out prompts are answered, and little is left to learn from."
        return Finding("solved", says, evidence)
    says = "Stalled: the rewards of nearly every group are equal, and such a group teaches nothing."
    rewards = {report.reward_mean for n in run.late for report in run.reports(n)}
    return Finding("stalled", says, evidence, _ALL_ZERO if rewards == {0.0} else _ALL_EQUAL)


def _reward_without_accuracy(run: Evidence) -> Finding | None:
    ups = [client for client in run.accuracy if client in run.rewards and run.rewards[client].up]
    if run.mean_accuracy is None or not run.mean_accuracy.not_up or not ups or len(ups) < len(run.accuracy) / 2:
        return None
    evidence = [*run.accuracy_in_words(), listed(map(run.reward_in_words, ups))]
    return Finding("reward without accuracy", "Reward goes up while accuracy does not.", "; ".join(evidence), _GAMED)


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
    says = "Undecided: no change beyond what chance gives."
    if run.mean_accuracy is None and not run.rewards:
        says = "Undecided: so few rounds, and no accuracy after training, tell nothing."
    ups = sum(change.up for change in run.rewards.values())
    rewards = [f"reward clearly up at {ups} of {len(run.rewards)} clients"] if run.rewards else []
    rounds = f"{len(run.rounds)} round{'' if len(run.rounds) == 1 else 's'}"
    return Finding("undecided", says, "; ".join([*run.accuracy_in_words(), *rewards, rounds]), _TOO_LITTLE)


def _harmed(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    for client, change in run.accuracy.items():
        others = mean_change([other for name, other in run.accuracy.items() if name != client])
        if change.down and others and not others.down:
            evidence = f"{client} {percents(change)}; the others' mean {percents(others)}"
            yield Finding("harmed", f"Harmed: {client} loses while the others do not.", evidence, _PULLED)


def _starved(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    clients = dict.fromkeys([*(data.client for data in run.summary.data), *run.summary.clients])
    found = {client: why for client in clients if (why := run.why_starved(client))}
    if found:
        says = f"Starved: {named(found)} hardly take{_s(found)} part."
        yield Finding("starved", says, listed(f"{client}: {why}" for client, why in found.items()), _STARVING)


def _stalled_clients(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    equal = {client: share for client in run.summary.clients if (share := run.equal_groups(client)) is not None}
    solved = {client for client, change in run.accuracy.items() if change.after >= _SOLVED}
    found = {client: share for client, share in equal.items() if share >= _EQUAL and client not in solved}
    if found and of_run not in ("stalled", "solved"):
        shares = listed(f"{client}: {percent(share)}" for client, share in found.items())
        says = f"Stalled: {named(found)} learn{_s(found)} nothing from own prompts."
        yield Finding("stalled", says, f"groups with equal rewards in {span(run.late)}: {shares}", _ALL_EQUAL)


def _reward_without_accuracy_at_clients(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    not_up = [client for client, change in run.accuracy.items() if change.not_up and change.after < _SOLVED]
    found = [client for client in not_up if client in run.rewards and run.rewards[client].up]
    if found and of_run != "reward without accuracy":
        evidence = [f"{run.reward_in_words(client)}, accuracy {percents(run.accuracy[client])}" for client in found]
        says = f"Reward goes up while accuracy does not at {named(found)}."
        yield Finding("reward without accuracy", says, listed(evidence), _GAMED)


def _carried(run: Evidence, of_run: Kind) -> Iterator[Finding]:
    for client, change in run.accuracy.items():
        why, reports = run.why_starved(client), run.summary.reports[client].values()
        equal = fmean(report.degenerate for report in reports) if reports else 0.0
        if not why and equal >= _EQUAL:
            why = f"{percent(equal)} of its own groups had equal rewards"
        if change.up and why and len(run.accuracy) > 1:
            says = f"Carried: {client} gains by what the others learn."
            yield Finding("carried", says, f"{client} {percents(change)}; {why}")


def _s(found: Sequence[str] | dict[str, str] | dict[str, float]) -> str:
    return "s" if len(found) == 1 else ""


_OF_RUN: Sequence[Callable[[Evidence], Finding | None]] = (
    _not_finite,
    _collapsing,
    _diverging,
    _stalled,
    _reward_without_accuracy,
    _learning,
)
_OF_CLIENTS: Sequence[Callable[[Evidence, Kind], Iterator[Finding]]] = (
    _harmed,
    _starved,
    _stalled_clients,
    _reward_without_accuracy_at_clients,
    _carried,
)

_DIVERGED = "Lower train.lr or server.lr, fewer train.local_steps, or aggregation.robust: clipped_mean."
_COLLAPSED = "Lower train.lr, some train.entropy_coef or train.beta, a larger train.clip_high; read the samples."
_ALL_ZERO = "Every reward is 0: the tasks are too hard, or the reward function never matches. Read the samples."
_ALL_EQUAL = "Harder or easier tasks, a larger rollout.group_size, a higher rollout.temperature; read the samples."
_GAMED = "The reward may pay for something else than being right: the first function judges, the others only shape."
_TOO_LITTLE = "More rounds (`fgrpo resume RUN --rounds N`), or more evaluation.prompts."
_STARVING = "More rows, another aggregation.n_k, a lower aggregation.cap; log.txt and the quarantines say what failed."
_PULLED = "Its task pulls another way: another aggregation.rule, fewer train.local_steps, a lower server.lr."
