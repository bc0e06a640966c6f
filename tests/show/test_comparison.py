"""Runs side by side: on the screen, and as CSV, JSON and HTML."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from fgrpo.cli import main
from fgrpo.errors import ConfigError
from fgrpo.records import TEST_SET, Evaluation, Report, RoundSummary, ServerState
from fgrpo.run_folder import RunFolder
from fgrpo.show.comparison import Compared, comparison_tables, differences
from fgrpo.show.comparison_ends import endings_table
from fgrpo.show.comparison_files import write_comparison

FEDAVG = """
clients: {ward: {tasks: [{reasoning_gym: gcd, params: {max_value: 9}}, {reasoning_gym: chain_sum}]}}
aggregation: {rule: fedavg}
lora: {rank: 8}
"""
FGRPO = """
clients: {ward: {tasks: [{reasoning_gym: gcd, params: {max_value: 60}}, {reasoning_gym: chain_sum}]}}
aggregation: {rule: fgrpo}
train: {lr: 1.0e-4}
evaluation: {tasks: [{dataset: test.jsonl}]}
output_dir: elsewhere
"""


def make_run(path, config, after):
    folder = RunFolder.create(path, config)
    report = Report("ward", 1, 64, 640, 0.5, 0.1, 10.0, 0.0, {}, {})
    round_ = RoundSummary(1, {"ward": 1.0}, {"ward": 0.0}, {}, {"ward": 100}, 800, 1.0, {"clients": 2.0})
    tested = [Evaluation(TEST_SET, 1, 10, 0.9, 0.9)] if "test.jsonl" in config else []
    state = ServerState.initial(torch.zeros(3))
    folder.commit(state, [Evaluation("ward", 0, 64, 0.25, 0.3)], {})
    folder.commit(replace(state, round=1), [report, round_, Evaluation("ward", 1, 64, after, 0.8), *tested], {})
    return folder


@pytest.fixture
def runs(tmp_path):
    made = (("fedavg", FEDAVG, 0.5), ("fgrpo", FGRPO, 0.75))
    return [Compared.of(make_run(tmp_path / name, config, after)) for name, config, after in made]


def test_only_what_differs_is_named_as_deep_as_all_have_it(runs):
    assert {key: values for key, values in differences(runs).items() if "." in key and "evaluation" not in key} == {
        "clients.ward.tasks.0.params.max_value": [9, 60],
        "train.lr": [1e-5, 1e-4],
        "aggregation.rule": ["fedavg", "fgrpo"],
    }
    rows = comparison_tables(runs)[0].rows
    assert ("lora", "{rank: 8}", "-") in rows
    assert ("evaluation.tasks", "[]", "[{dataset: test.jsonl}]") in rows
    assert len(rows) == 5


def test_tables_of_runs_and_of_clients(runs):
    _, of_runs, of_clients = comparison_tables(runs)
    assert [row[1:] for row in of_runs.rows] == [
        ("25.0% → 50.0%", "+25.0", "-", "1", "100 B", "2 s", "learning"),
        ("25.0% → 75.0%", "+50.0", "90.0%", "1", "100 B", "2 s", "learning"),
    ]
    assert of_clients.rows == (("ward", "50.0% (+25.0)", "75.0% (+50.0)"),)


ENDS = {
    "within chance": (0.5, 64, "+0.0 points [-17.1, +17.1]", "not decided"),
    "the second": (0.75, 64, "+25.0 points [+9.0, +41.0]", "ends higher"),
    "the first": (0.25, 64, "-25.0 points [-41.0, -9.0]", "ends lower"),
    "too few prompts": (0.75, 8, "+25.0 points [-5.9, +55.9]", "not decided"),
}


@pytest.mark.parametrize(("after", "prompts", "difference", "outcome"), ENDS.values(), ids=ENDS)
def test_each_further_run_against_the_first(runs, after, prompts, difference, outcome):
    first, other = replace(runs[0], name="fedavg"), replace(runs[1], name="fgrpo")
    measured = {n: replace(e, prompts=prompts) for n, e in other.summary.evaluations["ward"].items()}
    measured[1] = replace(measured[1], accuracy=after)
    other = replace(other, summary=replace(other.summary, evaluations={"ward": measured}))
    (row,) = endings_table([first, other]).rows
    assert row == ("fgrpo", difference, f"1 client, {prompts} prompts, after round 1", outcome)


def test_runs_that_evaluated_nobody_in_common_are_not_decided(runs):
    unmeasured = replace(runs[1], summary=replace(runs[1].summary, evaluations={"ward": {}}))
    (row,) = endings_table([runs[0], unmeasured]).rows
    assert row[-1] == "not decided: no client was evaluated after training in both"


def test_csv_has_a_row_for_each_run_and_client_with_the_differing_keys(runs, tmp_path):
    write_comparison(tmp_path / "out.csv", runs)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["aggregation.rule"], row["client"], row["accuracy_after"]) for row in rows] == [
        ("fedavg", "ward", "0.5"),
        ("fgrpo", "ward", "0.75"),
        ("fgrpo", TEST_SET, "0.9"),
    ]
    assert rows[2]["accuracy_before"] == "", "what was not measured is empty"


def test_json_has_the_numbers_and_the_verdicts(runs, tmp_path):
    write_comparison(tmp_path / "out.JSON", runs)
    read = json.loads((tmp_path / "out.JSON").read_text())
    of_first, of_second = (read["differences"]["lora"][run.name] for run in runs)
    assert (of_first["rank"], of_second) == (8, None)
    of_run = read["runs"][runs[1].name]
    assert of_run["verdict"][0]["kind"] == "learning"
    of_ends = read["against_first"][runs[1].name]
    assert of_ends["difference"] == 0.25
    assert of_ends["interval"][0] > 0
    assert of_run["clients"]["ward"]["score_after"] == 0.8


def test_a_page_of_the_comparison_needs_nothing_else(runs, tmp_path):
    write_comparison(tmp_path / "new" / "out.html", runs)
    page = (tmp_path / "new" / "out.html").read_text(encoding="utf-8")
    assert "<title>FGRPO: 2 runs compared</title>" in page
    assert "Learning: held-out accuracy rose." in page
    assert f"Final mean accuracy against {runs[0].name}" in page
    assert "src=" not in page


def test_the_command_writes_what_the_endings_say(runs, tmp_path, capsys):
    folders = [run.name for run in runs]
    assert main(["compare", *folders, "-o", str(tmp_path / "a.csv"), "--output", str(tmp_path / "a.html")]) == 0
    assert {path.name for path in tmp_path.glob("a.*")} == {"a.csv", "a.html"}
    output = capsys.readouterr().out
    assert "aggregation.rule" in output
    assert "ends higher" in output
    assert [line for line in output.splitlines() if line.startswith("written: ")] == [
        f"written: {tmp_path / name}" for name in ("a.csv", "a.html")
    ]
    assert main(["compare", *folders, "-o", str(tmp_path / "a.txt")]) == 1
    assert "a.txt: expected a file that ends in .csv, .json or .html" in capsys.readouterr().err


def test_another_ending_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="expected a file that ends in"):
        write_comparison(tmp_path / "out", runs)
