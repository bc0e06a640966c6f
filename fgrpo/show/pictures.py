"""Which pictures a report has: of all that changed. What did not is said in words."""

from __future__ import annotations

from collections import Counter

from fgrpo.show.charts import COLOURS, Picture, bar_picture, count_picture, line_picture, stack_picture
from fgrpo.show.series import accuracy_by_round, rewards, vital_signs, weights
from fgrpo.show.summary import RunSummary
from fgrpo.show.tables import label_counts
from fgrpo.show.text import percent, seconds


def pictures(summary: RunSummary) -> tuple[list[Picture], list[str]]:
    """Return a run's pictures, and in words what is constant in it, and so not drawn."""
    crosses = {c: [r.round for r in summary.rounds if c in r.quarantined] for c in summary.clients}
    by_round, reward, weight = accuracy_by_round(summary), rewards(summary), weights(summary)
    signs = list(vital_signs(summary))
    drawn = [_accuracy_bars(summary), _data(summary)]
    if max(map(len, by_round.values.values())) > 2 and not by_round.constant:  # of two the bars say it all
        drawn.append(line_picture(by_round, summary.shown()))
    drawn += [line_picture(s, summary.shown(), crosses) for s in (reward, weight) if not s.constant]
    panels = [line_picture(sign, list(sign.values)).panels[0] for sign in signs if not sign.constant]
    if panels:
        drawn.append(Picture("How training went: means over the clients of a round", tuple(panels)))
    drawn.append(_time(summary))
    constants = [
        f"{series.title.partition(',')[0].lower()} {series.range_in_words()}"
        for series in (reward, weight, *signs)
        if series.constant and series.several
    ]
    return [picture for picture in drawn if picture is not None], constants


def _accuracy_bars(summary: RunSummary) -> Picture | None:
    bars = [(client, *summary.accuracy(client)) for client in summary.shown() if summary.evaluations[client]]
    if len(bars) > 1 and (mean := summary.mean_accuracy()):
        bars.append(("mean", *mean))
    if summary.test_set:
        bars.append(("test set", *summary.test_accuracy()))
    after = f" and after round {summary.evaluated_after}" if summary.evaluated_after else ""
    return bar_picture(f"Held-out accuracy before training{after}", bars) if bars else None


def _data(summary: RunSummary) -> Picture | None:
    """Return the clients' training rows, by label where the data were split by one; None where all are alike."""
    shown = set(summary.shown())
    rows = {data.client: data for data in summary.data if data.client in shown and data.rows}
    told = any(map(label_counts, rows.values()))  # else every label is its client's own name
    labels = sum((Counter(data.labels) for data in rows.values()), Counter[str]()) if told else Counter[str]()
    if len({data.rows for data in rows.values()}) < 2 and len(labels) < 2:
        return None
    kinds = [label for label, _ in labels.most_common(COLOURS - 1)]
    counts = {client: (dict(data.labels) if told else {}) or {"rows": data.rows or 0} for client, data in rows.items()}
    return count_picture(f"Training rows{' by label' if kinds else ''}", counts, sorted(kinds) or ["rows"])


def _time(summary: RunSummary) -> Picture | None:
    stages = summary.stage_seconds()
    total = sum(map(sum, stages.values()))
    if len(summary.rounds) < 2 or not total:
        return None  # the table says it
    labels = [f"{stage} {seconds(sum(spent))}, {percent(sum(spent) / total)}" for stage, spent in stages.items()]
    title = "Time per round and stage, added up over clients"
    return stack_picture(title, stages, labels, seconds(max(map(sum, zip(*stages.values(), strict=True)))))
