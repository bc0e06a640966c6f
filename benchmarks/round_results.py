"""From what contenders played to the figures that are compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from process_tree import Samples

Record = dict[str, Any]


def repetition(played: Record, started: float, samples: Samples) -> Record:
    """The figures of one process that played all rounds. The first round stands apart, unless it is the only one.

    Args:
        played: the fields of `rivals.record.Played`.
        started: the moment at which the process was started.
    """
    rounds = played["rounds"]
    later = rounds[1:] or rounds
    work = {key: sum(r["work"][key] for r in later) for key in later[0]["work"]}
    stages = sorted({stage for r in later for stage in r["stages"]})
    return {
        "round_s": [r["seconds"] for r in rounds],
        "round_informative": [r["work"]["informative"] for r in rounds],
        "stages_s": {stage: statistics.median(r["stages"][stage] for r in later) for stage in stages},
        "startup_s": (played["ready"] or rounds[0]["start"]) - started,
        "cpu_s": samples.cpu_between(later[0]["start"], later[-1]["end"]) / len(later),
        "peak_bytes": samples.peak_between(rounds[0]["start"], rounds[-1]["end"]),
        "uplink_bytes": statistics.median(r["uplink_bytes"] for r in later),
        "tokens": work["tokens"] / len(later),
        "tokens_per_s": {stage: work["tokens"] / work[f"{stage}_s"] for stage in ("rollout", "train")},
        "groups": work["groups"] / len(later),
        "informative": work["informative"] / len(later),
        "accuracy_before": played["before"],
        "accuracy": played["after"],
    }


def summary(name: str, repetitions: Sequence[Record]) -> Record:
    """One contender's figures: medians over repetitions, and the spread of the seconds a round."""
    rounds = [seconds for r in repetitions for seconds in (r["round_s"][1:] or r["round_s"])]
    first = repetitions[0]
    return {
        "name": name,
        "round_s": {"median": statistics.median(rounds), "min": min(rounds), "max": max(rounds), "count": len(rounds)},
        "first_round_s": statistics.median(r["round_s"][0] for r in repetitions),
        **{
            key: statistics.median(r[key] for r in repetitions)
            for key in ("startup_s", "cpu_s", "peak_bytes", "uplink_bytes", "tokens", "groups", "informative")
        },
        **{key: _medians([r[key] for r in repetitions]) for key in ("stages_s", "tokens_per_s", "accuracy")},
        "accuracy_before": first["accuracy_before"],
        "repetitions": list(repetitions),
    }


def times_ours(theirs: Record, ours: Record) -> float:
    """How many times as long their round takes: the median over repetitions, each against ours of the same turn."""
    pairs = zip(theirs["repetitions"], ours["repetitions"], strict=True)
    return statistics.median(_round_s(t) / _round_s(o) for t, o in pairs)


def equal_work(records: Sequence[Record]) -> bool:
    """Whether all had as many informative groups, to 5%: ours does not train on a group without signal, TRL does."""
    counts = [record["informative"] for record in records]
    return max(counts) <= 1.05 * min(counts)


def headline(config: str, ours: Record, rivals: Sequence[Record]) -> dict[str, str]:
    """The line for README's table: ours beside the fastest of its rivals, each with its `times_ours`."""
    fastest = min(rivals, key=lambda rival: rival["round_s"]["median"])
    return {
        "what": f"a federated round, {config}",
        "figure": f"{ours['round_s']['median']:.3g} s",
        "against": f"{fastest['name']} {fastest['round_s']['median']:.3g} s, {fastest['times_ours']:.2g} times as long",
    }


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line of least squares."""
    return statistics.linear_regression(xs, ys).slope


def _round_s(repetition: Record) -> float:
    return statistics.median(repetition["round_s"][1:] or repetition["round_s"])


def _medians(records: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(record[key] for record in records) for key in records[0]}
