"""What a study says it decides, on made-up results, whatever its arms are called."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from fgrpo.show.tables import TextTable
from fgrpo.study.comparison import rows, runs
from fgrpo.study.plan import pairs
from fgrpo.study.plots import write_plots
from fgrpo.study.result import Result
from fgrpo.study.tables import how_to_read, markdown, scenario_table
from fgrpo.study.verdict import sentences, verdict_table

PROMPTS = 64
ARMS = ("fedavg", "<b>fgrpo</b>")


def made_up(small, gains, **kwargs):
    """Rows of a study in which an arm's seeds gain so much each within 3 rounds of 4, at both clients."""
    return rows(small, made_up_runs(small, gains, **kwargs))


def made_up_runs(small, gains, start=0.25, prompts=PROMPTS, sampled=None):
    by_cell = {}
    for pair in pairs(small):
        for cell, gain in zip(pair.reported(None, small.seeds), gains[pair.arm.name], strict=True):
            line = {n: start + gain * min(n, 3) / 3 for n in range(5)}
            of_clients = {"sums": prompts, "gcd": prompts} if prompts else {}
            completions = dict.fromkeys(range(1, 5), sampled[pair.arm.name]) if sampled else {}
            by_cell[cell] = Result({"sums": line, "gcd": line}, {}, 0, 1.0, {}, of_clients, completions)
    return runs(small, pairs(small), by_cell.get)


DECISIONS = {
    "higher": ([0.2, 0.21, 0.19], [0.3, 0.31, 0.3], "+10.3 points [+8.9, +11.8] over 3 seeds: higher"),
    "lower": ([0.3, 0.31, 0.3], [0.2, 0.21, 0.19], "-10.3 points [-11.8, -8.9] over 3 seeds: lower"),
    "not decided": ([0.3, 0.3], [0.36, 0.32], "+4.0 points [-21.4, +29.4] over 2 seeds: not decided"),
    "the same": ([0.3, 0.2], [0.3, 0.2], "+0.0 points [+0.0, +0.0] over 2 seeds: no difference with any seed"),
    "one seed": ([0.3], [0.4], "+10.0 points with 1 seed: not decided, which takes two seeds at least"),
}


@pytest.mark.parametrize(("reference", "other", "words"), DECISIONS.values(), ids=DECISIONS)
def test_an_arm_against_the_reference(study, reference, other, words):
    small = study(f"seeds: {len(reference)}\nlast: 1")
    found = made_up(small, dict(zip(ARMS, (reference, other), strict=True)))
    assert list(sentences(small, found)) == [f"<b>fgrpo</b> against fedavg: {words}"]


@pytest.mark.parametrize(("prompts", "gain", "learned"), [(64, 0.03, False), (64, 0.2, True), (0, -0.01, False)])
def test_where_nobody_learned_it_says_so_and_no_speed(study, prompts, gain, learned):
    small = study("seeds: 2\nlast: 1")
    found = made_up(small, dict(zip(ARMS, ([gain, gain], [gain, gain]), strict=True)), prompts=prompts)
    (*first, against) = sentences(small, found)
    assert against.startswith("<b>fgrpo</b> against fedavg: +0.0 points")
    assert [line.split(":")[0] for line in first] == ([] if learned else ["nobody learned"])


@pytest.mark.parametrize(
    ("gains", "cell"),
    [([0.2, 0.2, 0.2], "1.00 [1.00, 1.00]"), ([0.2, 0.2], "1.00 (no interval)"), ([0.0, 0.0, 0.0], "")],
    ids=["an interval", "too few seeds for one", "nothing learned"],
)
def test_fewer_rounds_with_their_interval_and_none_where_nothing_was_learned(study, gains, cell):
    small = study(f"seeds: {len(gains)}\nlast: 1")
    table = scenario_table(small, "small", made_up(small, dict.fromkeys(ARMS, gains)), brief=True)
    assert table.columns[-1] == "fewer rounds"
    assert [row[-1] for row in table.rows] == ["", cell]
    assert "fewer rounds: how many times" in how_to_read(small, table.columns)
    assert "restless" not in how_to_read(small, table.columns), "a column that is not shown"


@pytest.mark.parametrize(
    ("sampled", "columns"),
    [
        ({ARMS[0]: 1000, ARMS[1]: 1500}, [("4,000", ""), ("6,000", "0.67 [0.67, 0.67]")]),
        ({ARMS[0]: 1000, ARMS[1]: 1000}, None),
        (None, None),
    ],
    ids=["more", "as many", "not counted"],
)
def test_completions_are_shown_where_arms_sampled_more_or_fewer(study, sampled, columns):
    small = study("seeds: 3\nlast: 1")
    table = scenario_table(small, "small", made_up(small, {arm: [0.2] * 3 for arm in ARMS}, sampled=sampled))
    shown = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    if columns is None:
        assert "completions" not in table.columns
        assert "fewer completions" not in table.columns
    else:
        assert [(row["completions"], row["fewer completions"]) for row in shown] == columns
        assert "in sampled completions" in how_to_read(small, table.columns)


def test_replies_that_were_not_used_are_told(study):
    small = study("seeds: 2\nlast: 1")
    found = made_up(small, {arm: [0.2, 0.2] for arm in ARMS})
    assert scenario_table(small, "small", found).note == ""
    found = [replace(row, quarantined=48.0 if row.arm == ARMS[1] else 0.0) for row in found]
    assert scenario_table(small, "small", found).note == f"replies that were not used, a run: {ARMS[1]} 48"


def test_one_arm_alone_is_compared_with_nothing(study):
    small = study("seeds: 2\nlast: 1")
    small = replace(small, arms=small.arms[:1])
    (line,) = sentences(small, made_up(small, {"fedavg": [0.2, 0.3]}))
    assert line == (
        "fedavg: accuracy 25.0% before training, 50.0% at the end over 2 seeds; there is nothing to compare it with"
    )


def test_sentences_of_several_scenarios_bear_their_names(study):
    small = study("seeds: 2\nlast: 1\nscenarios: {one: {}, two: {train.lr: 2.0e-3}}")
    table = verdict_table(small, made_up(small, {arm: [0.2, 0.3] for arm in ARMS}))
    assert [row[0] for row in table.rows] == ["one", "two"]


def test_a_markdown_table_holds_any_name():
    text = markdown(TextTable("a|b", ("arm\n", "`x`"), (("<b>|\\", "1"),), note="<i>"))
    assert text == "## a\\|b\n\n| arm\\\\n | \\`x\\` |\n| --- | ---: |\n| \\<b>\\|\\\\ | 1 |\n\n\\<i>\n"


def test_a_legend_names_every_arm(study, tmp_path, monkeypatch):
    small = study("last: 1")
    names = ("fedavg", "_$a|b\n[/x]")
    small = replace(small, arms=tuple(replace(a, name=n) for a, n in zip(small.arms, names, strict=True)))
    legends = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: legends.extend(figure.legends))
    found = made_up_runs(small, {name: [0.2] for name in names})
    write_plots(small, found, rows(small, found), tmp_path)
    assert [text.get_text().strip() for text in legends[0].get_texts()] == ["fedavg", "_$a|b\\n[/x]"]
